"""Data sets on disk as pictures with annotations, and those as training items.

A *source* lists names in a fixed order and reads one picture at a time. Where they lie (folder, tar, COCO file) is its
business alone.
"""

from __future__ import annotations

from edgesam_deploy.distill.data.sources import Annotated, Source, open_source

__all__ = ["Annotated", "Source", "open_source"]
