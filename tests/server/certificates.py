"""Certificates for servers of tests."""

from pathlib import Path

import trustme


def written(folder: Path, kind: trustme.KeyType = trustme.KeyType.ECDSA) -> tuple[Path, Path]:
    """A new certificate, followed by its authority's so that clients can trust the file; and its key."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1", key_type=kind)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in [*issued.cert_chain_pems, authority.cert_pem]))
    issued.private_key_pem.write_to_path(key)
    return certificate, key
