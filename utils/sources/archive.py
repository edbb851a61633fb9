"""Archives, unpacked by the standard library."""

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.system.errors import DataError
from utils.system.progress import progress

KINDS = {suffix: kind for kind, suffixes, _ in shutil.get_unpack_formats() for suffix in suffixes}


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """Unpack ``archive`` into a temporary folder beside it; DataError if it is no archive, damaged or unsafe."""
    kind = next((KINDS[suffix] for suffix in KINDS if archive.name.lower().endswith(suffix)), None)
    if kind is None:
        raise DataError(f"{archive} is not an archive: give a folder or one of {', '.join(KINDS)}.")
    folder = archive.with_name(f".{archive.name}.unpacked")
    shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    try:
        with progress(desc=f"Unpacking {archive.name}", unit=" files") as bar:

            def safe(member: tarfile.TarInfo, where: str) -> tarfile.TarInfo | None:
                bar.update()
                return tarfile.data_filter(member, where)

            try:  # zip files cannot contain links or devices, and names that lead outside are skipped
                shutil.unpack_archive(archive, folder, kind, **({} if kind == "zip" else {"filter": safe}))
            except Exception as error:  # tarfile, zipfile and their decompressors raise a dozen types
                if getattr(error, "errno", None):  # of the disk or the terminal, not of the archive
                    raise
                reason = str(error).partition("\n")[0] or type(error).__name__
                told = f"{archive} cannot be unpacked ({reason})"
                raise DataError(f"{told}: download it again, or unpack it and set DATA to the folder.") from error
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
