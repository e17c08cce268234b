"""Reading and writing images, drawing, and helpers of command lines."""
