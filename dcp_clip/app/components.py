"""Gradio's components as the page uses them.

They are made by functions. A subclass would make Gradio write a .pyi file next to this one.
"""

from pathlib import Path
from typing import Any

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The page needs Gradio: pip install 'gradio>=6,<7'") from error

__all__ = ["STATIC", "image_file", "sample_buttons", "threshold_slider", "viewer"]

STATIC = Path(__file__).with_name("static")


def image_file(**options: Any) -> gr.Image:
    """Return an input for an image, which functions get as the path of the unchanged file.

    Gradio's own class decodes the file, so 16-bit images would lose bits. It also downloads images
    of other servers; here their address is an error.
    """
    component = gr.Image(**options)
    move = component.async_move_resource_to_block_cache

    async def keep(path: Any) -> str | None:
        if str(path or "").lower().startswith(("http:", "https:")):
            text = "Upload the image; the server loads nothing from other addresses."
            raise gr.Error(text, print_exception=False)
        return await move(path)

    component.async_move_resource_to_block_cache = keep
    component.preprocess = lambda payload: payload and payload.path
    return component


def threshold_slider(**options: Any) -> gr.Slider:
    """Return an input from 0 to 0.95. It is 0 while a user has emptied its field."""
    component = gr.Slider(0, 0.95, value=0, step=0.05, **options)
    preprocess = component.preprocess
    component.preprocess = lambda value: preprocess(0 if value is None else value)
    return component


def viewer(**options: Any) -> gr.HTML:
    """Return an output that draws the values of `dcp_clip.app.view.make_view`."""
    return gr.HTML(
        html_template="<div></div>",
        js_on_load=(STATIC / "viewer.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_classes="viewer",
        min_width=280,
        **options,
    )


def sample_buttons(html: str, **options: Any) -> gr.HTML:
    """Return the row of `samples_html`; the event of a click has the `index` of a sample."""
    script = (STATIC / "samples.js").read_text(encoding="utf-8")
    return gr.HTML(html, js_on_load=script, **options)
