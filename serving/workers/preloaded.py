"""What all workers share: imported, warmed and frozen once, in the process that they are forked from.

Importing this module does it. A fork copies only the pages that it writes to; the garbage collector would write to all
of them, hence the freeze.
"""

from __future__ import annotations

import gc
import importlib
import signal

import cv2
import pycocotools.mask  # noqa: F401  # loaded to be inherited

import serving.engines.onnxruntime
import serving.workers.engine  # noqa: F401  # likewise
from serving.workers.decoder import warm_up
from serving.workers.entry import settle

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the service ends it, also where a signal goes to the whole group
importlib.import_module("onnxruntime")  # after our own module, which tells it to report nothing
cv2.setNumThreads(1)  # a thread of this process would be missing in those forked from it
warm_up()
settle()
gc.freeze()
