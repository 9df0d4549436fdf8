"""The decode contexts of an engine, one a window, replayed as CUDA graphs."""

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress

from nemo_trt.engines.device import Device
from nemo_trt.errors import MachineError

from .runtime import Context
from .windows import Window

_LOG = logging.getLogger("nemo_trt.engines")


class Decoders:
    """Contexts that were made at open, and the graphs that were captured of them.

    Attributes:
        without_graph: numbers of rows whose steps run without a CUDA graph -> why.
    """

    def __init__(self, device: Device, *, use_graphs: bool) -> None:
        self._device, self._use_graphs = device, use_graphs
        self._contexts: dict[Window, Context] = {}
        self._graphs: dict[Window, object] = {}
        self.without_graph: dict[int, str] = {}
        self._closing = ExitStack()

    def add(self, window: Window, context: Context, prepare: Callable[[], None]) -> None:
        """Take a context whose shapes and memory are set; run it once, and capture it.

        Args:
            prepare: puts inputs on the device that write where nothing is held.
        """
        self._contexts[window] = context
        if self._use_graphs and window.rows not in self.without_graph:
            prepare()
            context.enqueue(self._device.stream)
            self._capture(window, context)

    def of_at_least(self, rows: int) -> Window:
        """The first window of so many rows or more."""
        return next(window for window in self._contexts if window.rows >= rows)

    def run(self, window: Window) -> None:
        """Put a decode step of what was uploaded on the stream."""
        if graph := self._graphs.get(window):
            self._device.launch(graph)
        else:
            self._contexts[window].enqueue(self._device.stream)

    def close(self) -> None:
        """Free the graphs, and forget the contexts; a second call does nothing."""
        self._graphs.clear()
        self._contexts.clear()
        self._closing.close()

    def _capture(self, window: Window, context: Context) -> None:
        """Keep a window's decode step as a graph; if it is refused, the log and `without_graph`
        say so."""
        try:
            graph = self._captured(context)
        except MachineError as error:
            self.without_graph[window.rows] = str(error)
            _LOG.warning(
                "decode steps of %d rows run without a CUDA graph, slower: %s", window.rows, error
            )
            return
        self._closing.callback(self._device.free_graph, graph)
        self._graphs[window] = graph

    def _captured(self, context: Context) -> object:
        if not context.capturable(self._device.stream):
            raise MachineError("TensorRT says that it cannot be captured.")
        self._device.begin_capture()
        try:
            context.enqueue(self._device.stream)
        except BaseException:
            with suppress(MachineError):  # CUDA refuses the capture's end too: the reason stays
                self._device.free_graph(self._device.end_capture())
            raise
        return self._device.end_capture()
