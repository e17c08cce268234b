"""What the benchmarking programs in tools/ share."""
