"""Where blocks run."""

import socket
import warnings

from popcosmos_hpc.campaign.cluster import open_client
from popcosmos_hpc.config import ExecutorConfig


def test_another_status_server_on_the_machine_is_no_reason_to_complain():
    with socket.socket() as other, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            other.bind(("", 8787))
            other.listen()
        except OSError:  # another one is there already
            pass
        with open_client(ExecutorConfig(name="local", workers=1)) as client:
            assert client.submit(sum, [1, 2], pure=False).result() == 3
