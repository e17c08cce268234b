"""The page: a Gradio app on this machine that segments images with any names (docs/app.md)."""
