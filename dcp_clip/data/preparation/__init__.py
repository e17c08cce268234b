"""What the scripts in datasets/ share: reading raw labels and writing prepared data sets."""
