"""Whether two values are the same: value, type, element type, flags, order, and what they share."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse
import torch

__all__ = ["differs"]


def differs(found: Any, wanted: Any, at: str = "value") -> str | None:
    """What differs, in words; None if the values are the same."""
    if type(found) is not type(wanted):
        return f"{at} is {type(found)}, not {type(wanted)}"
    for kind, compare in _COMPARE:
        if isinstance(wanted, kind):
            return compare(found, wanted, at)
    return _objects(found, wanted, at)


def _array(found: Any, wanted: Any, at: str) -> str | None:
    for name in ("dtype", "shape"):
        if getattr(found, name) != getattr(wanted, name):
            return f"{at}.{name} is {getattr(found, name)}, not {getattr(wanted, name)}"
    if found.dtype.metadata != wanted.dtype.metadata:
        return f"{at}.dtype.metadata is {found.dtype.metadata}, not {wanted.dtype.metadata}"
    # A layout that is neither C nor Fortran may arrive as either.
    if wanted.flags.forc:
        for flag in ("c_contiguous", "f_contiguous"):
            if getattr(found.flags, flag) != getattr(wanted.flags, flag):
                return f"{at}.flags.{flag} is {getattr(found.flags, flag)}"
    if found.flags.writeable != wanted.flags.writeable:
        return f"{at}.flags.writeable is {found.flags.writeable}"
    if not found.flags.aligned:
        return f"{at} is not aligned"
    if wanted.dtype.hasobject:
        return differs(found.tolist(), wanted.tolist(), at)
    if isinstance(wanted.dtype, np.dtypes.StringDType):
        return None if found.tolist() == wanted.tolist() else f"{at} has other strings"
    if wanted.dtype.kind in "fc" and wanted.dtype.itemsize in (16, 32):  # bytes of padding
        is_same = np.array_equal(found, wanted, equal_nan=True)
        return None if is_same else f"{at} has other elements"
    is_same = np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(wanted).tobytes()
    return None if is_same else f"{at} has other elements"


def _subclass(found: Any, wanted: Any, at: str) -> str | None:
    return _array(np.asarray(found), np.asarray(wanted), at) or _contents(found, wanted, at)


def _plain_or_subclass(found: Any, wanted: Any, at: str) -> str | None:
    compare = _array if type(wanted) is np.ndarray else _subclass
    return compare(found, wanted, at)


def _memmap(found: Any, wanted: Any, at: str) -> str | None:
    return _array(np.asarray(found), np.asarray(wanted), at)


def _masked(found: Any, wanted: Any, at: str) -> str | None:
    return (
        _array(found.data, wanted.data, f"{at}.data")
        or differs(np.ma.getmaskarray(found), np.ma.getmaskarray(wanted), f"{at}.mask")
        or differs(found.fill_value, wanted.fill_value, f"{at}.fill_value")
        or differs(found.hardmask, wanted.hardmask, f"{at}.hardmask")
    )


def _asserted(assert_equal: Callable[[Any, Any], None]) -> Callable[[Any, Any, str], str | None]:
    def compare(found: Any, wanted: Any, at: str) -> str | None:
        try:
            assert_equal(found, wanted)
        except AssertionError as exc:
            return f"{at}: {exc}"
        return None

    return compare


_frames_equal = _asserted(
    functools.partial(pd.testing.assert_frame_equal, check_freq=True, check_exact=True)
)


def _frame(found: Any, wanted: Any, at: str) -> str | None:
    said = _frames_equal(found, wanted, at)
    if said is None and found.attrs != wanted.attrs:
        said = f"{at}.attrs is {found.attrs}"
    if said is None and found.flags != wanted.flags:
        said = f"{at}.flags is {found.flags}"
    for name in getattr(wanted, "_metadata", ()):
        said = said or differs(getattr(found, name), getattr(wanted, name), f"{at}.{name}")
    for number in range(wanted.shape[1]):
        if said is None and wanted.dtypes.iloc[number].kind == "O":
            said = differs(
                found.iloc[:, number].tolist(), wanted.iloc[:, number].tolist(), f"{at}[{number}]"
            )
    return said or _can_be_written(found, at)


def _can_be_written(frame: Any, at: str) -> str | None:
    """pandas copies before it writes, unless its blocks cannot be written to at all."""
    if not frame.shape[0] or not frame.shape[1] or not frame.columns.is_unique:
        return None
    copied = frame.copy(deep=False)
    try:
        copied.iloc[0, 0] = copied.iloc[0, 0]
    except ValueError as exc:
        return f"{at} cannot be written to: {exc}"
    return None


def _series(found: Any, wanted: Any, at: str) -> str | None:
    compare = functools.partial(pd.testing.assert_series_equal, check_freq=True, check_exact=True)
    said = _asserted(compare)(found, wanted, at)
    if said is None and wanted.dtype.kind == "O":
        said = differs(found.tolist(), wanted.tolist(), at)
    return said


def _index(found: Any, wanted: Any, at: str) -> str | None:
    said = _asserted(functools.partial(pd.testing.assert_index_equal, exact=True))(
        found, wanted, at
    )
    if said is None and getattr(found, "freq", None) != getattr(wanted, "freq", None):
        said = f"{at}.freq is {found.freq}"
    return said


def _arrow(found: Any, wanted: Any, at: str) -> str | None:
    if isinstance(wanted, (pa.Table, pa.RecordBatch)):
        if not found.schema.equals(wanted.schema, check_metadata=True):
            return f"{at}.schema is {found.schema}"
    elif isinstance(wanted, pa.Schema):
        return None if found.equals(wanted, check_metadata=True) else f"{at} is {found}"
    elif hasattr(wanted, "type") and found.type != wanted.type:
        return f"{at}.type is {found.type}"
    return None if found.equals(wanted) else f"{at} has other elements"


def _sparse(found: Any, wanted: Any, at: str) -> str | None:
    if (found.format, found.dtype, found.shape) != (wanted.format, wanted.dtype, wanted.shape):
        return f"{at} is {found!r}"
    return differs(found.toarray(), wanted.toarray(), at)


def _tensor(found: Any, wanted: Any, at: str) -> str | None:
    for name in ("dtype", "shape", "layout", "requires_grad", "device", "is_leaf"):
        if getattr(found, name) != getattr(wanted, name):
            return f"{at}.{name} is {getattr(found, name)}, not {getattr(wanted, name)}"
    said = differs(found.__dict__, wanted.__dict__, f"{at}.__dict__")
    if said or wanted.device.type == "meta":
        return said
    if wanted.layout is not torch.strided:
        if wanted.layout is torch.sparse_coo:
            names = ["_indices", "_values", "is_coalesced"]
        elif wanted.layout in (torch.sparse_csr, torch.sparse_bsr):
            names = ["crow_indices", "col_indices", "values"]
        else:
            names = ["ccol_indices", "row_indices", "values"]
        pairs = [(name, getattr(found, name)(), getattr(wanted, name)()) for name in names]
        return next(filter(None, (differs(f, w, f"{at}.{name}") for name, f, w in pairs)), None)
    if wanted.is_quantized:
        said = differs(found.q_scale(), wanted.q_scale(), f"{at}.q_scale")
        return said or differs(found.int_repr(), wanted.int_repr(), at)
    for name in ("is_conj", "is_neg"):
        if getattr(found, name)() != getattr(wanted, name)():
            return f"{at}.{name}() is {getattr(found, name)()}"
    if wanted.dim() == 4:
        last = {"memory_format": torch.channels_last}
        if found.is_contiguous(**last) != wanted.is_contiguous(**last):
            return f"{at} has lost its memory format"
    if wanted.is_contiguous() and not found.is_contiguous():
        return f"{at} is not contiguous"
    # Where memory overlaps in itself (expanded tensors), it must not blow up.
    if found.untyped_storage().nbytes() > max(64, 2 * wanted.untyped_storage().nbytes()):
        return f"{at} takes {found.untyped_storage().nbytes()} bytes"
    if _bytes(found) != _bytes(wanted):
        return f"{at} has other elements"
    if (found.grad is None) != (wanted.grad is None):
        return f"{at}.grad is {found.grad}"
    return None if wanted.grad is None else differs(found.grad, wanted.grad, f"{at}.grad")


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def _module(found: Any, wanted: Any, at: str) -> str | None:
    mine, theirs = (dict(one.named_parameters(remove_duplicate=False)) for one in (found, wanted))
    said = differs(found.state_dict(), wanted.state_dict(), at)
    if said:
        return said
    for name, one in theirs.items():
        for other, two in theirs.items():
            if (one is two) != (mine[name] is mine[other]):
                return f"{at}: {name} and {other} are not what they were to each other"
    return None


def _dict(found: Any, wanted: Any, at: str) -> str | None:
    if len(found) != len(wanted):
        return f"{at} has {len(found)} keys, not {len(wanted)}"
    said = differs(list(found), list(wanted), f"{at}'s keys")
    said = said or differs(list(found.values()), list(wanted.values()), f"{at}'s values")
    return said or _contents(found, wanted, at)


def _sequence(found: Any, wanted: Any, at: str) -> str | None:
    if list.__len__(list(found)) != list.__len__(list(wanted)):
        return f"{at} has {len(list(found))} elements"
    if len(wanted) > 1000 and all(type(one) in _SIMPLE for one in wanted):
        if list(map(repr, found)) != list(map(repr, wanted)):
            return f"{at} has other elements"
        return _contents(found, wanted, at)
    for number, (one, other) in enumerate(zip(list(found), list(wanted), strict=True)):
        said = differs(one, other, f"{at}[{number}]")
        if said:
            return said
    for i in range(min(len(wanted), 5)):
        for j in range(i):
            if (wanted[i] is wanted[j]) != (found[i] is found[j]) and _has_identity(wanted[i]):
                return f"{at}[{i}] and {at}[{j}] are not what they were to each other"
    return _contents(found, wanted, at)


_SIMPLE = (int, float, str, bool, type(None), complex, bytes)


def _has_identity(value: Any) -> bool:
    return isinstance(value, (list, dict, bytearray, np.ndarray, torch.Tensor))


def _number(found: Any, wanted: Any, at: str) -> str | None:
    return None if int(found) == int(wanted) else f"{at} is another number"


def _float(found: Any, wanted: Any, at: str) -> str | None:
    is_same = repr(found) == repr(wanted) and math.copysign(1, found) == math.copysign(1, wanted)
    return None if is_same else f"{at} is {found!r}, not {wanted!r}"


def _text(found: Any, wanted: Any, at: str) -> str | None:
    return None if repr(found) == repr(wanted) else f"{at} is {found!r:.200}, not {wanted!r:.200}"


def _is_it(found: Any, wanted: Any, at: str) -> str | None:
    return None if found is wanted else f"{at} is {found!r:.200}, not {wanted!r:.200}"


def _set(found: Any, wanted: Any, at: str) -> str | None:
    return None if found == wanted else f"{at} has other elements"


def _image(found: Any, wanted: Any, at: str) -> str | None:
    for name in ("mode", "size"):
        if getattr(found, name) != getattr(wanted, name):
            return f"{at}.{name} is {getattr(found, name)}"
    return None if found.tobytes() == wanted.tobytes() else f"{at} has other pixels"


def _identical(found: Any, wanted: Any, at: str) -> str | None:
    return None if found.identical(wanted) else f"{at} is {found}"


def _polars(found: Any, wanted: Any, at: str) -> str | None:
    if type(wanted).__name__ == "LazyFrame":
        found, wanted = found.collect(), wanted.collect()
    is_same = found.equals(wanted, null_equal=True)
    if is_same and hasattr(wanted, "schema"):
        is_same = found.schema == wanted.schema
    return None if is_same else f"{at} is {found}"


def _generator(found: Any, wanted: Any, at: str) -> str | None:
    return differs(found.bit_generator.state, wanted.bit_generator.state, at)


def _objects(found: Any, wanted: Any, at: str) -> str | None:
    """Objects by what they hold; what holds nothing by its text."""
    room = type(wanted).__module__.partition(".")[0]
    if room == "polars":
        return _polars(found, wanted, at)
    if room == "xarray":
        return _identical(found, wanted, at)
    if room == "PIL":
        return _image(found, wanted, at)
    if dataclasses.is_dataclass(wanted):
        names = [field.name for field in dataclasses.fields(wanted)]
        pairs = ((name, getattr(found, name), getattr(wanted, name)) for name in names)
        return next(filter(None, (differs(f, w, f"{at}.{n}") for n, f, w in pairs)), None)
    if isinstance(wanted, BaseException):
        said = differs(found.args, wanted.args, f"{at}.args")
        return said or differs(found.__dict__, wanted.__dict__, f"{at}.__dict__")
    if getattr(wanted, "__dict__", None) and not hasattr(wanted, "__arrow_c_schema__"):
        return _contents(found, wanted, at)
    return _text(found, wanted, at)


def _contents(found: Any, wanted: Any, at: str) -> str | None:
    held = getattr(wanted, "__dict__", None)
    if not held:
        return None
    # What WithState and OwnReduce say of themselves depends on how they were made.
    told = {k: v for k, v in held.items() if k not in ("cache", "made_by")}
    mine = {k: v for k, v in found.__dict__.items() if k not in ("cache", "made_by")}
    return _dict_of_plain(mine, told, f"{at}.__dict__")


def _dict_of_plain(found: dict[str, Any], wanted: dict[str, Any], at: str) -> str | None:
    if list(found) != list(wanted):
        return f"{at} has {list(found)}, not {list(wanted)}"
    pairs = ((name, found[name], wanted[name]) for name in wanted)
    return next(filter(None, (differs(f, w, f"{at}[{n!r}]") for n, f, w in pairs)), None)


_COMPARE: tuple[tuple[Any, Callable[[Any, Any, str], str | None]], ...] = (
    (np.ma.MaskedArray, _masked),
    (np.memmap, _memmap),
    ((np.recarray, np.matrix, np.char.chararray), _memmap),
    (np.ndarray, _plain_or_subclass),
    (np.random.Generator, _generator),
    (pd.DataFrame, _frame),
    (pd.Series, _series),
    (pd.Index, _index),
    (torch.nn.Module, _module),
    (torch.Tensor, _tensor),
    (scipy.sparse.sparray, _sparse),
    (scipy.sparse.spmatrix, _sparse),
    (
        (pa.Table, pa.RecordBatch, pa.Array, pa.ChunkedArray, pa.Schema, pa.Scalar, pa.Buffer),
        _arrow,
    ),
    (bool, _is_it),
    (int, _number),
    (float, _float),
    ((type, types.FunctionType, types.BuiltinFunctionType), _is_it),
    (dict, _dict),
    ((set, frozenset), _set),
    ((list, tuple), _sequence),
)
