"""Serve the page on this machine."""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from dcp_clip.app.components import STATIC, gr
from dcp_clip.app.models import Models
from dcp_clip.app.page import build_page
from dcp_clip.app.samples import find_samples
from dcp_clip.app.segmenter import Segmenter

__all__ = ["MAX_UPLOAD_BYTES", "PageOnly", "serve"]

MAX_UPLOAD_BYTES = 50_000_000
# A file in a form is a little larger than the file.
_MAX_REQUEST_BYTES = MAX_UPLOAD_BYTES + 100_000
# The browser loads from this server only and sends to this server only. Gradio's page contains
# scripts and styles inside the HTML.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)

Message = MutableMapping[str, Any]


class PageOnly:
    """ASGI middleware: the page loads nothing from other servers, and requests have a limit."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > _MAX_REQUEST_BYTES:
            body = b'{"error": "The upload is too large."}'
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return None

        from starlette.exceptions import HTTPException

        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > _MAX_REQUEST_BYTES:  # a request in chunks states no length
                raise HTTPException(413, "The upload is too large.")
            return message

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                private = (b"referrer-policy", b"no-referrer")
                message["headers"] = [*message.get("headers", []), policy, private]
            await send(message)

        return await self._app(scope, receive_within_limit, send_with_policy)


def serve(models: Models, host: str = "127.0.0.1", port: int | None = None) -> Any:
    """Serve the page from threads of this process.

    Args:
        models: what the page offers; the first model is loaded before the page opens.
        host: address to listen at; "0.0.0.0" makes the page reachable from other machines.
        port: default: the first free one from 7860 on.

    Returns:
        the running `gradio.Blocks`: `local_url` is its address, `block_thread()` waits until
        Ctrl-C, and `close()` stops it.

    Raises:
        OSError: if the port is not free.
    """
    from starlette.middleware import Middleware

    # Also for what Gradio decides outside of `launch`.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    models.get(models.titles[0])
    page = build_page(Segmenter(models))
    sans = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")
    theme = gr.themes.Default(
        primary_hue="teal", font=sans, font_mono=("ui-monospace", "monospace"), radius_size="lg"
    ).set(
        body_background_fill="#f4f6f7",
        body_text_color_subdued="#5b6470",
        block_info_text_color="#5b6470",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#115e59",
    )
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        show_error=False,  # errors that are not messages have no details for the browser
        allowed_paths=[str(sample.path) for sample in find_samples()],
        max_file_size=MAX_UPLOAD_BYTES,
        app_kwargs={"middleware": [Middleware(PageOnly)]},
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        theme=theme,
        css_paths=STATIC / "page.css",
    )
    return page
