"""What can go wrong with getting a model file.

FetchFailed             fetch_failed      (xnai.agents.inference.errors) a download did not succeed
├── ModelUnknown        model_unknown     no such model, on the hub or on this disk
├── ModelSplit          model_split       it lies on the hub in several files
├── HubRefused          hub_refused       the hub wants a token, or its conditions accepted
├── HubUnreachable      hub_unreachable   the network or the hub; what has come is kept, try again
├── ModelChanged        model_changed     the hub has another content now than the file that is here
├── ChecksumWrong       checksum_wrong    what came is not what the hub promises; it is thrown away
└── DiskFull            disk_full         the file does not fit on the disk
"""

from xnai.agents.inference.errors import FetchFailed


class ModelUnknown(FetchFailed, LookupError):
    """No such model, on the hub or on this disk."""

    code = "model_unknown"


class ModelSplit(FetchFailed):
    """The model lies on the hub in several files."""

    code = "model_split"


class HubRefused(FetchFailed, PermissionError):
    """The hub wants a token, or its conditions accepted."""

    code = "hub_refused"


class HubUnreachable(FetchFailed, ConnectionError):
    """The network or the hub is not there. What has come is kept; the same command goes on from there."""

    code = "hub_unreachable"


class ModelChanged(FetchFailed):
    """The hub has another content now than the file that is here."""

    code = "model_changed"


class ChecksumWrong(FetchFailed, ValueError):
    """What came is not what the hub promises. It is thrown away."""

    code = "checksum_wrong"


class DiskFull(FetchFailed):
    """The file does not fit on the disk."""

    code = "disk_full"
