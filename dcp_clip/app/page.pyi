"""The page and its API, made with Gradio."""

import html
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dcp_clip.app.downloads import FORMATS, write_file
from dcp_clip.app.samples import find_samples, samples_html
from dcp_clip.app.segmenter import Request, Segmenter
from dcp_clip.app.view import describe_regions, make_view
from dcp_clip.utils.arguments import format_error

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The page needs Gradio: pip install 'gradio>=6,<7'") from error

__all__ = ["STATIC", "build_page"]

logger = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")
_HEAD = """<div id="head"><h1>DCP<span>-</span>CLIP</h1>
<p>Add an image, type names, see where they are. Your images stay on this machine.</p></div>"""
# Events that run the model wait for each other: two at once would each take twice as long.
_MODEL = {"concurrency_id": "model", "concurrency_limit": 1}
_BUTTONS = {"labels": "Label map", "coco": "COCO", "polygons": "Polygons", "overlay": "Picture"}
_SAVE = """(file) => {
  const link = document.createElement("a");
  Object.assign(link, { href: file.url, download: file.orig_name });
  link.click();
}"""

class Photograph(gr.Image):
    """An uploaded image file, given to functions as its path, unchanged.

    Gradio's own class decodes the file, so 16-bit images would lose bits.
    """

    is_template = True  # the page draws it as gr.Image

    def preprocess(self, payload: Any) -> str | None:
        return payload and payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        # Gradio would download the image of an address.
        if str(url_or_file_path or "").lower().startswith(("http:", "https:")):
            raise gr.Error("Upload the image; the server loads nothing from other addresses.")
        return await super().async_move_resource_to_block_cache(url_or_file_path)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class Viewer(gr.HTML):
    """Draws what `make_view` returns."""

    def __init__(self, **options: Any) -> None:
        script = (STATIC / "viewer.js").read_text(encoding="utf-8")
        super().__init__(
            html_template="<div></div>",
            js_on_load=script,
            apply_default_css=False,
            elem_classes="viewer",
            min_width=280,
            **options,
        )
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Show errors on the page: those of the user with their message, others without details."""
    try:
        yield
    except gr.Error:
        raise
    except (KeyError, OSError, ValueError) as error:
        text = html.escape(format_error(error), quote=False)
        raise gr.Error(text, title="Not possible", print_exception=False) from error
    except Exception as error:
        logger.exception("A request failed.")
        text = "The server could not do this; its terminal shows the reason."
        raise gr.Error(text, title="Failed", print_exception=False) from error

def build_page(segmenter: Segmenter) -> gr.Blocks:
    """Return the page.

    Args:
        segmenter: answers the requests; its first model is the default.
    """
    samples = [sample for sample in find_samples() if segmenter.models.title_of(sample.config_file)]
    titles = segmenter.models.titles
    cache = (3600, 24 * 3600)  # every hour, delete uploads and results that are a day old
    with gr.Blocks(title="DCP-CLIP", analytics_enabled=False, delete_cache=cache) as page:
        gr.HTML(_HEAD)
        with gr.Row(elem_id="stage-row"):
            with gr.Column(min_width=300):
                photo = Photograph(
                    label="Image",
                    show_label=False,
                    sources=["upload", "clipboard", "webcam"],
                    buttons=[],
                    elem_id="photo",
                )
            with gr.Column(min_width=300):
                viewer = Viewer(elem_id="viewer")
            with gr.Column(min_width=300, visible=False) as other_column:
                other_viewer = Viewer(elem_id="other-viewer")
        with gr.Row(elem_id="names-row"):
            names = gr.Textbox(
                label="Names",
                info="Separate names with semicolons, and synonyms with commas.",
                placeholder="sky; tree; car, automobile",
                lines=1,
                max_lines=6,
                scale=5,
                min_width=260,
                elem_id="names",
            )
            other_names = gr.Textbox(
                label="Other names",
                info="The second result.",
                placeholder="sky; plant; vehicle",
                lines=1,
                max_lines=6,
                scale=5,
                min_width=260,
                visible=False,
                elem_id="other-names",
            )
            segment = gr.Button("Segment", variant="primary", elem_id="segment", min_width=130)
        sample_row = gr.HTML(
            samples_html(samples),
            js_on_load=(STATIC / "samples.js").read_text(encoding="utf-8"),
            visible=bool(samples),
            elem_id="samples",
        )
        with gr.Accordion("Options", open=False, elem_id="options"):
            with gr.Row():
                model = gr.Dropdown(
                    titles, value=titles[0], label="Model", info="What it was trained on."
                )
                unknown = gr.Slider(
                    0,
                    0.95,
                    value=0,
                    step=0.05,
                    label="Unknown below",
                    info="Pixels with a smaller confidence become unknown.",
                    elem_id="unknown",
                )
                compare = gr.Checkbox(
                    label="Compare two lists of names",
                    info="Two results side by side.",
                    elem_id="compare",
                )
        with gr.Accordion("Download", open=False, elem_id="download"):
            with gr.Row(elem_id="save-row"):
                save = {
                    kind: gr.Button(text, size="md", min_width=110, elem_id=f"save-{kind}")
                    for kind, text in _BUTTONS.items()
                }
        file = gr.DownloadButton(visible=False)
        shown = gr.State(None)  # the Request of the result

        inputs = [photo, names, model, unknown, compare, other_names]
        outputs = [viewer, other_viewer, shown]
        run = partial(_segment, segmenter)
        private = {"api_visibility": "private", "show_progress_on": [viewer, other_viewer]}
        last = {"trigger_mode": "always_last"}  # of many quick changes only the last counts
        asked = [segment.click, names.submit, other_names.submit]
        gr.on(asked, partial(run, asked=True), inputs, outputs, **private, **_MODEL, **last)
        changed = [photo.input, unknown.release, model.input, compare.input]
        gr.on(changed, run, inputs, outputs, **private, **_MODEL, **last)
        compare.input(
            lambda on: (gr.update(visible=on), gr.update(visible=on)),
            compare,
            [other_column, other_names],
            api_visibility="private",
            show_progress="hidden",
        )
        sample_row.click(
            partial(_choose_sample, segmenter, samples),
            [compare, other_names],
            [photo, names, model, unknown, *outputs],
            **private,
            **_MODEL,
        )
        for kind, button in save.items():
            event = button.click(
                partial(_download, segmenter, kind, file.GRADIO_CACHE),
                shown,
                file,
                api_visibility="private",
                **_MODEL,
            )
            event.success(None, file, js=_SAVE, api_visibility="private")
        _add_endpoint(segmenter, file.GRADIO_CACHE)
    page.queue(max_size=64)
    return page

def _add_endpoint(segmenter: Segmenter, cache: str) -> None:
    """Add the endpoint /segment; docs/app.md describes it."""

    def segment(
        image: str | None, names: str, model: str, unknown_below: float, file_format: str
    ) -> tuple[dict[str, Any], Path]:
        with errors_as_messages():
            if image is None:
                raise ValueError("Give an image.")
            request = Request(image, names, model, unknown_below)
            encoded, prediction = segmenter(request)
            height, width = encoded.size
            result = {
                "width": width,
                "height": height,
                "regions": describe_regions(prediction),
                "milliseconds": round(prediction.milliseconds, 1),
            }
            file_name = Path(image).name
            path = write_file(_new_folder(cache), file_name, file_format, encoded, prediction)
            return result, path

    titles = segmenter.models.titles
    hidden: Callable = partial(dict, visible=False)
    gr.Button(visible=False).click(
        segment,
        [
            Photograph(label="image", **hidden()),
            gr.Textbox(label="names", **hidden()),
            gr.Dropdown(titles, value=titles[0], label="model", **hidden()),
            gr.Number(0, minimum=0, maximum=1, label="unknown_below", **hidden()),
            gr.Dropdown(list(FORMATS), value="labels", label="file_format", **hidden()),
        ],
        [gr.JSON(label="result", **hidden()), gr.File(label="file", **hidden())],
        api_name="segment",
        api_description="Label every pixel of an image with one of the names.",
        **_MODEL,
    )

def _segment(
    segmenter: Segmenter,
    photo: str | None,
    names: str,
    model: str,
    unknown: float,
    compare: bool,
    other_names: str,
    asked: bool = False,
) -> tuple[dict | None, dict | None, Request | None]:
    """Return the values of both viewers and of `shown`.

    Args:
        asked: whether the user asked for a result. If not, an image without names is no error.
    """
    with errors_as_messages():
        if asked and photo is None:
            raise ValueError("Add an image first.")
        if photo is None or not (asked or names.strip()):
            return None, None, None
        request = Request(photo, names, model, unknown)
        view = make_view(*segmenter(request))
        other = None
        if compare and other_names.strip():
            other = make_view(*segmenter(Request(photo, other_names, model, unknown)))
        return view, other, request

def _choose_sample(
    segmenter: Segmenter, samples: list, compare: bool, other_names: str, event: gr.EventData
) -> tuple:
    """Return the values of the inputs for a sample, and its result."""
    sample = samples[event.index]
    model = segmenter.models.title_of(sample.config_file)
    inputs = str(sample.path), sample.names, model, sample.unknown_below
    return *inputs, *_segment(segmenter, *inputs, compare, other_names)

def _download(segmenter: Segmenter, kind: str, cache: str, shown: Request | None) -> str:
    """Write the file of the result on the page."""
    with errors_as_messages():
        if shown is None:
            raise ValueError("Segment an image first.")
        image, prediction = segmenter(shown)
        name = Path(shown.image).name
        return str(write_file(_new_folder(cache), name, kind, image, prediction))

def _new_folder(cache: str) -> Path:
    """Return a new folder for files that the server may send."""
    folder = Path(cache) / uuid.uuid4().hex
    folder.mkdir(parents=True)
    return folder
