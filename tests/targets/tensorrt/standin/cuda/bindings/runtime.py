"""A stand-in for CUDA's runtime: device memory is the host's, a stream runs at once, a graph is a list of work."""

import ctypes
import time
from enum import IntEnum


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess
memory, graphs, events = {}, {}, {}
capture = None


def submit(work):
    if capture is None:
        work()
    else:
        capture.append(work)


def cudaStreamCreate():
    return OK, 7


def cudaStreamSynchronize(_):
    return (OK,)


def cudaMalloc(size):
    buffer = ctypes.create_string_buffer(size)
    memory[ctypes.addressof(buffer)] = buffer
    return OK, ctypes.addressof(buffer)


def cudaFree(address):
    return (OK,) if memory.pop(address, None) is not None else (cudaError_t.cudaErrorInvalidValue,)


def cudaMemcpyAsync(target, source, size, kind, stream):
    device = target if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else source
    if device not in memory or size > len(memory[device]):
        return (cudaError_t.cudaErrorInvalidValue,)
    ctypes.memmove(target, source, size)
    return (OK,)


def cudaStreamBeginCapture(*_):
    global capture
    capture = []
    return (OK,)


def cudaStreamEndCapture(_):
    global capture
    graphs[len(graphs) + 1], capture = capture, None
    return OK, len(graphs)


def cudaGraphInstantiate(graph, flags):
    return OK, graph


def cudaGraphLaunch(graph, stream):
    for work in graphs[graph]:
        work()
    return (OK,)


def cudaEventCreate():
    events[len(events) + 1] = 0.0
    return OK, len(events)


def cudaEventRecord(event, stream):
    events[event] = time.perf_counter()
    return (OK,)


def cudaEventSynchronize(_):
    return (OK,)


def cudaEventElapsedTime(start, end):
    return OK, 1e3 * (events[end] - events[start])


def cudaEventDestroy(_):
    return (OK,)
