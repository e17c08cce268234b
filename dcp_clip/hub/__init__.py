"""Models as folders, on this machine or on the Hugging Face Hub; see `dcp_clip.Predictor`."""
