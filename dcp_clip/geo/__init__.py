"""Segment rasters of any size, such as GeoTIFFs, with rasterio (the extra `geo`)."""
