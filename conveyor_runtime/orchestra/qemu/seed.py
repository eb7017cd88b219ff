"""The NoCloud seed of cloud-init: a CD with a machine's name, for images that wait for one."""

from __future__ import annotations

import io
import json
from pathlib import Path

from pycdlib import PyCdlib

__all__ = ["write_seed"]


def write_seed(file: Path, name: str) -> None:
    """Write the CD that cloud-init's NoCloud source looks for.

    Its data is JSON, which is YAML, so that no name can be more than a name. Nothing is installed and no user made:
    tasks come through the guest agent, which the image must have.
    """
    user_data = "#cloud-config\n" + json.dumps({"hostname": name[:63], "ssh_pwauth": False})
    meta_data = json.dumps({"instance-id": name, "local-hostname": name[:63]})
    disc = PyCdlib()
    disc.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for known, content in (("user-data", user_data), ("meta-data", meta_data)):
        data = content.encode()
        short = f"/{known.replace('-', '').upper()[:8]}.;1"
        disc.add_fp(io.BytesIO(data), len(data), short, rr_name=known, joliet_path=f"/{known}")
    disc.write(str(file))
    disc.close()
