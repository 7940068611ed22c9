"""The witness of the bytes: what a tensor holds, to the bit, and what its storage holds around it.

Reads only. Knows no op and no schema.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib

import torch

from gradext.fingerprints.fingerprint import SPARSE_PARTS

NOTHING = b""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A tensor's content at one moment.

    Attributes:
        form: sizes, strides, dtype, layout: what of a tensor is not in its bytes.
        values: the bytes of its elements, in order; b"" where it has no bytes (meta).
        storage: the bytes of its whole storage; None for layouts without one of their own.
        window: where in the storage the elements are, one bool a byte; None without a storage.
    """

    form: tuple[object, ...]
    values: bytes
    storage: torch.Tensor | None
    window: torch.Tensor | None

    def digest(self) -> str:
        """The values alone, in a few characters: equal bytes, equal digest."""
        return hashlib.blake2b(self.values, digest_size=12).hexdigest()

    def changed_outside(self, later: Snapshot) -> bool:
        """Whether bytes of the storage changed that are not the tensor's own."""
        if self.storage is None or later.storage is None or self.window is None:
            return False
        if self.storage.numel() != later.storage.numel():
            return False  # resized: there is no outside to compare
        return bool(((self.storage != later.storage) & ~self.window).any())


def read(t: torch.Tensor) -> Snapshot:
    """The content of `t` now; nothing of `t` changes."""
    try:
        return _read(t)
    except RuntimeError:  # a functorch wrapper, a layout half made: there is nothing to read
        return Snapshot((None,), NOTHING, None, None)


def _read(t: torch.Tensor) -> Snapshot:
    with torch.inference_mode(False), torch.no_grad():
        form = form_of(t)
        if t.device.type == "meta":
            return Snapshot(form, NOTHING, None, None)
        pieces = parts(t)
        values = b"".join(_bytes(_elements(piece)) for piece in pieces)
        if len(pieces) != 1 or pieces[0] is not t or t.is_quantized:
            return Snapshot(form, values, None, None)
        return Snapshot(form, values, _storage(t), _window(t))


def form_of(t: torch.Tensor) -> tuple[object, ...]:
    """What describes a tensor beside its bytes; `t_` and `resize_` write this."""
    with torch.inference_mode(False), torch.no_grad():
        strides: tuple[object, ...] = ()
        sizes: tuple[object, ...] = ()
        if not t.is_nested:
            sizes = tuple(t.shape)
            if t.layout is torch.strided:
                strides = (t.stride(), t.storage_offset())
        bits = (t.is_conj(), t.is_neg()) if t.layout is torch.strided else ()
        coalesced = (t.is_coalesced(),) if t.layout is torch.sparse_coo else ()
        return (sizes, strides, str(t.dtype), str(t.layout), *bits, *coalesced)


def parts(t: torch.Tensor) -> list[torch.Tensor]:
    """The strided tensors that hold the elements; `[t]` for a tensor with a storage of its own."""
    with torch.inference_mode(False), torch.no_grad():
        if t.layout in SPARSE_PARTS:
            return [getattr(t, method)() for method in SPARSE_PARTS[t.layout]]
        if t.layout is torch.strided and not t.is_nested:
            return [t]
        if t.layout is torch.strided:
            return [piece.detach() for piece in t.unbind()]
        with contextlib.suppress(RuntimeError):
            return [t.to_dense()]  # mkldnn
        return []


def memory(t: torch.Tensor) -> list[tuple[str, int, int]]:
    """(device, first byte, one past the last) of every storage that `t` is made on."""
    found: list[tuple[str, int, int]] = []
    if t.layout is torch._mkldnn:  # type: ignore[attr-defined]
        return found  # its parts are copies
    try:
        pieces = parts(t)
    except RuntimeError:
        return []
    for piece in pieces:
        with contextlib.suppress(RuntimeError, NotImplementedError):
            storage = piece.untyped_storage()
            if piece.device.type == "meta":
                found.append(("meta", storage._cdata, storage._cdata + 1))
            elif storage.nbytes():
                start = storage.data_ptr()
                found.append((str(piece.device), start, start + storage.nbytes()))
    return found


def shares_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are made on the same memory, be it through two storages (numpy)."""
    return any(
        device == other and start < until and begin < end
        for device, start, end in memory(a)
        for other, begin, until in memory(b)
    )


def _elements(t: torch.Tensor) -> torch.Tensor:
    """The elements in order as they lie in memory; conj and neg bits are not applied."""
    if t.is_quantized:
        return t.int_repr().contiguous()
    if t.numel() == 0:
        return t.new_empty(0)
    plain = torch.empty(0, dtype=t.dtype, device=t.device)
    plain.set_(t.untyped_storage(), t.storage_offset(), t.size(), t.stride())
    return plain.clone(memory_format=torch.contiguous_format)


def _storage(t: torch.Tensor) -> torch.Tensor:
    whole = torch.empty(0, dtype=torch.uint8, device=t.device)
    whole.set_(t.untyped_storage())
    return whole.clone().cpu()


def _window(t: torch.Tensor) -> torch.Tensor:
    size = t.element_size()
    items = torch.zeros(t.untyped_storage().nbytes() // size, dtype=torch.bool)
    if t.numel():
        items.as_strided(t.size(), t.stride(), t.storage_offset()).fill_(True)
    window = items.repeat_interleave(size)
    rest = t.untyped_storage().nbytes() - window.numel()
    return torch.cat([window, torch.zeros(rest, dtype=torch.bool)]) if rest else window


def _bytes(t: torch.Tensor) -> bytes:
    if t.numel() == 0:
        return NOTHING
    flat = torch.empty(0, dtype=torch.uint8, device=t.device)
    flat.set_(t.untyped_storage())
    data: bytes = flat.cpu().numpy().tobytes()
    return data
