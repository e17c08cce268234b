"""The page and its API, made with Gradio."""

import html
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dcp_clip.app.components import gr, image_file, sample_buttons, threshold_slider, viewer
from dcp_clip.app.downloads import FORMATS, write_file
from dcp_clip.app.samples import find_samples, samples_html
from dcp_clip.app.segmenter import Request, Segmenter
from dcp_clip.app.view import describe_regions, make_view
from dcp_clip.utils.arguments import format_error

__all__ = ["build_page"]

logger = logging.getLogger(__name__)

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


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Show errors on the page: those of the user with their message, others without details."""
    try:
        yield
    except gr.Error:
        raise
    except (KeyError, OSError, ValueError) as error:
        text = html.escape(format_error(error), quote=False)
        raise gr.Error(text, print_exception=False) from error
    except Exception as error:
        logger.exception("A request failed.")
        text = "The server could not do this; its terminal shows the reason."
        raise gr.Error(text, print_exception=False) from error


def build_page(segmenter: Segmenter) -> gr.Blocks:
    """Return the page.

    Args:
        segmenter: answers the requests; its first model is the default.
    """
    samples = [sample for sample in find_samples() if segmenter.models.title_of(sample.config_file)]
    titles = segmenter.models.titles
    cache = (3600, 24 * 3600)  # every hour, delete uploads and results that are a day old
    with gr.Blocks(title="DCP-CLIP", analytics_enabled=False, delete_cache=cache) as page:
        gr.HTML(_HEAD, padding=False)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=5, min_width=320, elem_id="inputs"):
                photo = image_file(
                    show_label=False,
                    sources=["upload", "webcam", "clipboard"],
                    buttons=[],
                    elem_id="photo",
                )
                names = gr.Textbox(
                    label="Names",
                    info="Semicolons separate names, commas separate synonyms.",
                    placeholder="sky; tree; car, automobile",
                    lines=1,
                    max_lines=5,
                    elem_id="names",
                )
                other_names = gr.Textbox(
                    label="Names of the second result",
                    placeholder="sky; plant; vehicle",
                    lines=1,
                    max_lines=5,
                    visible=False,
                    elem_id="other-names",
                )
                segment = gr.Button("Segment", variant="primary", elem_id="segment")
                sample_row = sample_buttons(
                    samples_html(samples), visible=bool(samples), elem_id="samples"
                )
                with gr.Accordion("Options", open=False, elem_id="options"):
                    model = gr.Dropdown(
                        titles,
                        value=titles[0],
                        label="Model",
                        info="The shipped models are small: each knows streets or drawings. Other "
                        "images and names work less well.",
                        elem_id="model",
                    )
                    unknown = threshold_slider(
                        label="Unknown below",
                        info="Pixels with a smaller confidence become unknown.",
                        elem_id="unknown",
                    )
                    compare = gr.Checkbox(label="Compare two lists of names", elem_id="compare")
                with gr.Accordion("Download", open=False, elem_id="download"):
                    with gr.Row(elem_id="save-row"):
                        save = {
                            kind: gr.Button(text, size="sm", min_width=80, elem_id=f"save-{kind}")
                            for kind, text in _BUTTONS.items()
                        }
            with gr.Column(scale=6, min_width=320, elem_id="outputs") as results:
                with gr.Row(elem_id="results"):
                    result = viewer(elem_id="viewer")
                    other_result = viewer(elem_id="other-viewer", visible=False)
        file = gr.DownloadButton(visible=False)
        shown = gr.State(None)  # the Requests of the results

        inputs = [shown, photo, names, model, unknown, compare, other_names]
        outputs = [result, other_result, shown]
        run = partial(_segment, segmenter)
        private = {"api_visibility": "private", "show_progress_on": [result, other_result]}
        last = {"trigger_mode": "always_last"}  # of many quick changes only the last counts
        asked = [segment.click, names.submit, other_names.submit]
        gr.on(asked, partial(run, asked=True), inputs, outputs, **private, **_MODEL, **last)
        # The event "change" also tells that a sample was removed; "input" does not.
        changed = [photo.change, unknown.input, model.input, compare.input]
        gr.on(changed, run, inputs, outputs, **private, **_MODEL, **last)
        compare.input(
            lambda on: (
                gr.update(visible=on),
                gr.update(visible=on),
                gr.update(scale=11 if on else 6),
            ),
            compare,
            [other_result, other_names, results],
            api_visibility="private",
            show_progress="hidden",
        )

        # Not a `partial`: Gradio would not find the parameter of the event.
        def choose(event: gr.EventData) -> tuple[str, str, str, float]:
            sample = samples[event.index]
            title = segmenter.models.title_of(sample.config_file)
            return str(sample.path), sample.names, title, sample.unknown_below

        # The inputs are filled at once, so that what the user does next is about this sample.
        chosen = sample_row.click(
            choose,
            None,
            [photo, names, model, unknown],
            queue=False,
            api_visibility="private",
            show_progress="hidden",
        )
        chosen.success(run, inputs, outputs, **private, **_MODEL, **last)
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
        image: str | None, names: str | None, model: str, unknown_below: float, file_format: str
    ) -> tuple[dict[str, Any], str]:
        with errors_as_messages():
            if image is None:
                raise ValueError("Give an image.")
            request = Request(image, names or "", model, unknown_below)
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
            return result, str(path)

    titles = segmenter.models.titles
    hidden: Callable = partial(dict, visible=False)
    gr.Button(visible=False).click(
        segment,
        [
            image_file(label="image", **hidden()),
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
    shown: list[Request] | None,
    photo: str | None,
    names: str | None,
    model: str,
    unknown: float,
    compare: bool,
    other_names: str | None,
    asked: bool = False,
) -> tuple[dict | None, dict | None, list[Request] | None]:
    """Return the values of both viewers and of `shown`.

    Args:
        shown: the requests of the results on the page.
        asked: whether the user asked for a result. If not, an image without names is no error.
    """
    with errors_as_messages():
        if asked and photo is None:
            raise ValueError("Add an image first.")
        names, other_names = names or "", other_names or ""  # Gradio gives None for no text
        if photo is None or not (asked or names.strip()):
            return None, None, None
        requests = [Request(photo, names, model, unknown)]
        if compare and other_names.strip():
            requests.append(Request(photo, other_names, model, unknown))
        if requests == shown and not asked:  # a sample changes several inputs at once
            return gr.skip(), gr.skip(), gr.skip()
        views = [make_view(*segmenter(request)) for request in requests]
        return views[0], views[1] if len(views) > 1 else None, requests


def _download(segmenter: Segmenter, kind: str, cache: str, shown: list[Request] | None) -> str:
    """Write the file of the first result on the page."""
    with errors_as_messages():
        if not shown:
            raise ValueError("Segment an image first.")
        image, prediction = segmenter(shown[0])
        name = Path(shown[0].image).name
        return str(write_file(_new_folder(cache), name, kind, image, prediction))


def _new_folder(cache: str) -> Path:
    """Return a new folder for files that the server may send."""
    folder = Path(cache) / uuid.uuid4().hex
    folder.mkdir(parents=True)
    return folder
