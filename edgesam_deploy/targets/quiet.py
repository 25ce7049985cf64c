"""Converters print as they like; a command's output is for its results."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from edgesam_deploy.errors import EdgeSamDeployError


@contextlib.contextmanager
def quiet(doing: str) -> Iterator[None]:
    """Send what Python and native libraries print to a log file, which stays only if the block fails.

    The converter prints its progress through a console of its own and the native part writes to the descriptors, so
    nothing less than the descriptors will do. Raises EdgeSamDeployError for whatever was raised inside, but for our
    own errors.
    """
    handle, name = tempfile.mkstemp(prefix="edgesam-deploy-", suffix=".log")
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    level = logging.root.manager.disable
    try:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        logging.disable(logging.WARNING)
        with open(name, "a") as log, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
    except EdgeSamDeployError:
        Path(name).unlink()
        raise
    except Exception as e:  # the converter's errors have no common base
        first = (str(e).splitlines() or [""])[0]
        raise EdgeSamDeployError(f"{doing} failed: {type(e).__name__}: {first}; what it printed is in {name}") from e
    else:
        Path(name).unlink()
    finally:
        logging.disable(level)
        for stream, descriptor in enumerate(saved, 1):
            os.dup2(descriptor, stream)
            os.close(descriptor)
        os.close(handle)
