"""Write small GeoTIFFs."""

import rasterio
from rasterio.transform import from_origin

UTM = "EPSG:32633"
GRID = from_origin(500_000, 5_200_000, 0.5, 0.5)


def write(path, bands, crs=UTM, transform=GRID, **options):
    count, height, width = bands.shape
    options |= {"crs": crs, "transform": transform, "dtype": bands.dtype}
    sizes = {"count": count, "height": height, "width": width}
    with rasterio.open(path, "w", driver="GTiff", **sizes, **options) as dataset:
        dataset.write(bands)
    return path
