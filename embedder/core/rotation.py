"""Principal axes of a corpus's vectors: rotated onto them before truncation, few components keep most of the variance.

Hotelling, Analysis of a Complex of Statistical Variables into Principal Components, 1933. The matrix is orthogonal, so inner
products at full width do not change. W = the full model's width.
"""

import hashlib
import io

import numpy as np
import numpy.typing as npt

from embedder.core.errors import ModelError, StorageError
from embedder.core.quantization import Floats
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location, Store

Doubles = npt.NDArray[np.float64]

ROTATION_FOLDER = "_rotation"
"""In the table's folder, so that a search does not depend on the calibration's location."""


def fit_rotation(covariance_WW: Doubles) -> Floats:
    """Return the axes of a covariance as columns, most variance first; `vectors @ axes` rotates."""
    _, axes_WW = np.linalg.eigh(covariance_WW)
    axes_WW = axes_WW[:, ::-1]
    largest_W = np.abs(axes_WW).argmax(axis=0)
    # an axis and its opposite are equivalent; fix the sign, so that equal samples give equal axes
    signs_W = np.sign(axes_WW[largest_W, np.arange(axes_WW.shape[1])])
    rotation_WW: Floats = np.ascontiguousarray(axes_WW * signs_W, np.float32)
    return rotation_WW


def digest_array(array: Floats) -> str:
    """Return a hash of an array's values."""
    return hashlib.blake2b(np.ascontiguousarray(array, np.dtype("<f4")).tobytes(), digest_size=16).hexdigest()


def rotation_uri(name: str, table: str) -> str:
    """Return the uri of a table's rotation: a .npy file named by the digest of its values."""
    return Store(Store(table).child(ROTATION_FOLDER)).child(f"{name}.npy")


def keep_rotation(rotation_WW: Floats, location: Location) -> None:
    """Write a rotation into the table's folder, unless it is there."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(rotation_WW, np.dtype("<f4")))
    Store(rotation_uri(digest_array(rotation_WW), location.uri), location.options).write_once(buffer.getvalue())


def read_rotation(spec: EmbeddingSpec, location: Location) -> Floats | None:
    """Read the rotation of a table's vectors, None if they have none; StorageError if the file is gone, ModelError if it is damaged."""
    if spec.rotation is None:
        return None
    store = Store(rotation_uri(spec.rotation, location.uri), location.options)
    if store.info() is None:
        raise StorageError(f"{store.uri}: not found, and queries need the rotation of the vectors; run the job that made the table again")
    with store.open_input() as file:
        data = file.read()
    try:
        rotation_WW: Floats = np.load(io.BytesIO(data))
    except Exception as error:  # numpy raises many kinds for a damaged header, of tokenize and zipfile too
        raise ModelError(f"{store.uri}: damaged ({error}); delete it and run the job that made the table again") from error
    if not isinstance(rotation_WW, np.ndarray) or rotation_WW.dtype != np.float32 or rotation_WW.ndim != 2:
        raise ModelError(f"{store.uri}: damaged (not a matrix of float32); delete it and run the job that made the table again")
    check_rotation(rotation_WW, spec, store.uri)
    return rotation_WW


def check_rotation(rotation_WW: Floats | None, spec: EmbeddingSpec, where: str) -> None:
    """Raise ModelError unless the rotation is the spec's."""
    if (None if rotation_WW is None else digest_array(rotation_WW)) != spec.rotation:
        raise ModelError(f"{where}: not the rotation of the spec ({spec.rotation}); give the calibration or table it came from")
