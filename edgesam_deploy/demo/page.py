"""The page, with gradio: what is on it and which of the session's methods each control calls.

Nothing leaves the machine: analytics are off, fonts are the system's, and the server listens where it was told to.
"""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from edgesam_deploy.demo.session import SAMPLES, Limits, Session, Shown
from edgesam_deploy.errors import EdgeSamDeployError, PromptError
from edgesam_deploy.model.base_predictor import PromptPredictor
from edgesam_deploy.toolkits import require

MODES = {"add inside": "inside", "add outside": "outside", "remove": "remove", "box (two corners)": "box"}
FONT = ["system-ui", "sans-serif"]
HEAD = ("artifact", "mask", "score", "time")
KEPT = 3600  # seconds that what visitors upload and download is kept
DRAG = (Path(__file__).parent / "drag.js").read_text("utf-8")


class Page:
    """Builds the page for artifacts that are loaded, and serves it."""

    def __init__(self, shown: tuple[Shown, ...], limits: Limits, remark: str = "") -> None:
        self.gradio: Any = require("gradio", "the demo")
        self.shown, self.limits, self.remark = shown, limits, remark
        self.downloads = tempfile.TemporaryDirectory(prefix="edgesam_deploy_demo_")  # gone with this process
        self.promptable = all(isinstance(entry.predictor, PromptPredictor) for entry in shown)
        self.views = len(shown) + (len(shown) == 2 and self.promptable)

    def serve(self, host: str, port: int) -> tuple[Any, str]:
        """Listen in a thread; the app and its address. Raises OSError where the port is taken."""
        gr = self.gradio
        theme = gr.themes.Default(font=FONT, font_mono=["ui-monospace", "monospace"])
        app = self.build()
        app.queue(default_concurrency_limit=4)
        _, url, _ = app.launch(
            server_name=host,
            server_port=port,
            theme=theme,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=self.limits.file_bytes,
            state_session_capacity=self.limits.visitors,
            show_error=True,
            enable_monitoring=False,
            footer_links=[],
            js=DRAG if self.promptable else None,
        )
        return app, url

    def build(self) -> Any:
        """The page as gradio's Blocks."""
        gr = self.gradio
        # what visitors upload and download is deleted an hour later
        with gr.Blocks(title="edgesam-deploy", analytics_enabled=False, delete_cache=(600, KEPT)) as app:
            state = gr.State(None)  # a session comes with its first use: gradio copies what stands here, models and all
            names = " and ".join(entry.label for entry in self.shown)
            gr.Markdown(f"## {names}\n{self.remark}")
            with gr.Row():
                upload = gr.UploadButton("Upload a picture", file_types=["image"], type="filepath", elem_id="upload")
                sample = gr.Dropdown(
                    sorted(p.stem for p in SAMPLES.glob("*.jpg")), label="or a sample", value=None, elem_id="sample"
                )
            says = "What a click does (dragging draws a box)"
            mode = gr.Radio(list(MODES), value=next(iter(MODES)), label=says, visible=self.promptable)
            dragged = gr.Textbox(visible="hidden", elem_id="dragged")  # drag.js writes corners into it
            with gr.Row():
                pictures = [self._picture(index) for index in range(self.views)]
            with gr.Row(visible=self.promptable):
                chosen = gr.Radio([], label="Mask, best score first", elem_id="mask")
                clear = gr.Button("Clear the prompt", elem_id="clear")
                side = gr.Slider(4, self.limits.points_per_side, value=8, step=1, label="Points a side")
                everything = gr.Button("Everything", elem_id="everything")
            table = gr.HTML(_table([]), elem_id="scores")  # gradio's own tables take the browser long at every click
            apart = gr.Markdown(elem_id="difference")
            with gr.Row():
                save_png = gr.Button("Mask as PNG" if self.promptable else "Classes as PNG", elem_id="png")
                save_rle = gr.Button("As COCO run lengths", elem_id="rle", visible=self.promptable)
                file = gr.File(label="Download", interactive=False, elem_id="file")
            out = [state, *pictures, table, apart, chosen]
            upload.upload(self._then(lambda s, path: s.load(path)), [state, upload], out)
            sample.change(self._then(lambda s, name: name and s.load(SAMPLES / f"{name}.jpg")), [state, sample], out)
            clear.click(self._then(lambda s: s.clear()), [state], out)
            everything.click(self._then(lambda s, n: s.everything(int(n))), [state, side], out)
            chosen.input(self._then(lambda s, index: s.choose(index)), [state, chosen], out)
            dragged.change(self._dragged(), [state, dragged], out, show_progress="hidden", queue=False)
            for picture in pictures:
                picture.select(self._clicked(), [state, mode], out, show_progress="hidden", queue=False)
            save_png.click(self._saved("mask.png", lambda s: s.as_png()), [state], file)
            save_rle.click(self._saved("mask.json", lambda s: s.as_rle().encode()), [state], file)
        return app

    def _picture(self, index: int) -> Any:
        labels = [*(entry.label for entry in self.shown), "where they differ"]
        return self.gradio.Image(
            label=labels[index], interactive=False, format="jpeg", elem_id=f"picture{index}", buttons=["fullscreen"]
        )

    def _then(self, change: Callable[..., Any]) -> Callable[..., list[Any]]:
        """A handler: change the session, then show it. What does not fit is said on the page and changes nothing."""

        def handler(session: Session | None, *values: Any) -> list[Any]:
            session = session or Session(self.shown, self.limits)
            try:
                change(session, *values)
            except EdgeSamDeployError as e:
                raise self.gradio.Error(str(e), print_exception=False) from e
            return self._state(session)

        return handler

    def _clicked(self) -> Callable[..., list[Any]]:
        select = self.gradio.SelectData

        def clicked(session: Session | None, mode: str, event: Any) -> list[Any]:
            x, y = event.index
            return self._then(lambda s: s.click(x, y, MODES[mode]))(session)

        clicked.__annotations__["event"] = select  # by the annotation gradio knows which argument the event is
        return clicked

    def _dragged(self) -> Callable[..., list[Any]]:
        def dragged(session: Session, text: str) -> None:
            try:
                x0, y0, x1, y1, _ = (float(word) for word in text.split(","))
            except ValueError as e:
                raise PromptError(f"{text!r} is no box: four numbers and a count, with commas") from e
            session.drag(x0, y0, x1, y1)

        return self._then(dragged)

    def _state(self, session: Session) -> list[Any]:
        shown: list[Any] = [picture for _, picture in session.pictures()]
        shown += [None] * (self.views - len(shown))
        choices = session.choices()
        chosen = self.gradio.Radio(choices=choices, value=session.chosen if choices else None)
        return [session, *shown, _table(session.rows()), session.difference(), chosen]

    def _saved(self, name: str, content: Callable[[Session], bytes]) -> Callable[[Session | None], str]:
        def handler(session: Session | None) -> str:
            try:
                data = content(session or Session(self.shown, self.limits))
            except EdgeSamDeployError as e:
                raise self.gradio.Error(str(e), print_exception=False) from e
            place = Path(self.downloads.name)
            place.mkdir(mode=0o700, exist_ok=True)  # whatever cleans /tmp may have taken it
            for old in place.iterdir():  # gradio sends a copy, which it deletes by itself
                with contextlib.suppress(FileNotFoundError):  # another visitor's call was first
                    if old.stat().st_mtime < time.time() - KEPT:
                        shutil.rmtree(old, ignore_errors=True)
            path = Path(tempfile.mkdtemp(dir=place)) / name
            path.write_bytes(data)
            return str(path)

        return handler


def _table(rows: list[list[str]]) -> str:
    """Rows of texts under HEAD, as HTML."""
    lines = [("th", HEAD), *(("td", row) for row in rows)]
    cells = ("".join(f"<{kind}>{html.escape(text)}</{kind}>" for text in row) for kind, row in lines)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
