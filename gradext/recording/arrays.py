"""The type of an event table: rows of integers."""

from __future__ import annotations

from typing import Any

import numpy

Array = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
