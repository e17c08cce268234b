"""Image files, pictures of results, and helpers of programs."""
