"""Principal axes of a corpus's vectors: turned onto them before the cut, few components keep most of what tells vectors apart.

Hotelling, Analysis of a Complex of Statistical Variables into Principal Components, 1933. The matrix is orthogonal: at full
width, inner products stay what they were. W = the full model's width.
"""

import hashlib
import io

import numpy as np
import numpy.typing as npt

from embedder.core.errors import ModelError, StorageError
from embedder.core.spec import EmbeddingSpec
from embedder.core.storage import Location, Store

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ROTATION_FOLDER = "_rotation"
"""In a table's folder: what queries need besides the model, so that no search depends on where the calibration was."""


def fit_rotation(covariance_WW: Doubles) -> Floats:
    """Give the axes of a covariance as columns, that of the most variance first: vectors @ axes are the vectors turned."""
    _, axes_WW = np.linalg.eigh(covariance_WW)
    axes_WW = axes_WW[:, ::-1]
    largest_W = np.abs(axes_WW).argmax(axis=0)
    # an axis and its opposite are as good: equal samples are to give equal ones
    signs_W = np.sign(axes_WW[largest_W, np.arange(axes_WW.shape[1])])
    rotation_WW: Floats = np.ascontiguousarray(axes_WW * signs_W, np.float32)
    return rotation_WW


def digest_array(array: Floats) -> str:
    """Hash the numbers of an array, whatever their number."""
    return hashlib.blake2b(np.ascontiguousarray(array, np.dtype("<f4")).tobytes(), digest_size=16).hexdigest()


def rotation_uri(name: str, table: str) -> str:
    """Say where a table keeps its rotation: a .npy file, named by its numbers."""
    return Store(Store(table).child(ROTATION_FOLDER)).child(f"{name}.npy")


def keep_rotation(rotation_WW: Floats, location: Location) -> None:
    """Write a table's rotation into its folder, once."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(rotation_WW, np.dtype("<f4")))
    Store(rotation_uri(digest_array(rotation_WW), location.uri), location.options).write_once(buffer.getvalue())


def read_rotation(spec: EmbeddingSpec, location: Location) -> Floats | None:
    """Read what a table's vectors were turned by, None if they were not; StorageError if it is gone, ModelError if it is damaged."""
    if spec.rotation is None:
        return None
    store = Store(rotation_uri(spec.rotation, location.uri), location.options)
    if store.info() is None:
        raise StorageError(f"{store.uri}: gone, and without it no query can be turned as the vectors were; run what made the table again")
    with store.open_input() as file:
        data = file.read()
    try:
        rotation_WW: Floats = np.load(io.BytesIO(data))
    except (ValueError, EOFError) as error:
        raise ModelError(f"{store.uri}: damaged ({error}); delete it and run what made the table again") from error
    check_rotation(rotation_WW, spec, store.uri)
    return rotation_WW


def check_rotation(rotation_WW: Floats | None, spec: EmbeddingSpec, where: str) -> None:
    """Refuse another rotation than the spec's, or none where it has one."""
    if (None if rotation_WW is None else digest_array(rotation_WW)) != spec.rotation:
        raise ModelError(f"{where}: not the rotation of the spec ({spec.rotation}); give the calibration or the table that it came from")
