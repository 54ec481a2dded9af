"""Files from public servers: begun downloads go on, and what came is compared with what was promised."""

import os
from pathlib import Path
from typing import Any

from scfusion_fm.data.fetch.manifest import RemoteFile
from scfusion_fm.notices import progress
from scfusion_fm.untrusted.text import show_text

CHUNK = 1 << 16  # of the last one that breaks off, nothing is kept
TIMEOUT = 60  # seconds without an answer
AGENT = "scfusion_fm"  # some servers refuse the usual name of a script


class Downloader:
    """
    What pooch downloads by, with a memory: bytes that came stay when a download breaks off, and the next goes on.

    Parameters
    ----------
    expected
        Size that the file should have; None for that which the server says.
    """

    def __init__(self, expected: int | None):
        self.expected = expected

    def __call__(self, url: str, output_file: str | os.PathLike, pooch: Any, check_only: bool = False) -> None:
        """
        Download a file.

        Raises
        ------
        ValueError
            If the server does not give it, or not as many bytes as it should have.
        """
        place = Path(output_file).parent
        part, tag = place / f"{Path(url).name}.part", place / f"{Path(url).name}.tag"
        total = self._receive(url, part, tag)
        size = part.stat().st_size
        wanted = total if self.expected is None else self.expected
        if wanted is not None and size != wanted:
            if size > wanted:
                part.unlink()  # of another file, so that nothing is to be gone on from
            raise ValueError(
                f"`{url}` must have {wanted:,} bytes, got {size:,}. Run the command again: it goes on where it "
                "broke off. If that does not help, the file on the server has changed."
            )
        part.replace(output_file)
        tag.unlink(missing_ok=True)

    def _receive(self, url: str, part: Path, tag: Path) -> int | None:
        """Add what is missing to what is there; give the size that the server says the whole has."""
        import requests  # slow to import

        begun = part.stat().st_size if part.exists() and tag.exists() else 0
        asked = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
        if begun:  # the rest, if the file is still the same, else all of it
            asked |= {"Range": f"bytes={begun}-", "If-Range": tag.read_text()}
        try:
            with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT) as answer:
                if answer.status_code == requests.codes.requested_range_not_satisfiable:
                    return begun
                answer.raise_for_status()
                if answer.status_code != requests.codes.partial_content:
                    begun = 0
                self._remember(answer.headers, tag)
                length = answer.headers.get("Content-Length")
                total = None if length is None else begun + int(length)
                with progress(total or 0, "B", Path(url).name) as bar, part.open("ab" if begun else "wb") as file:
                    bar.update(begun)
                    for chunk in answer.iter_content(CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))
        except requests.RequestException as error:
            raise ValueError(
                f"`{url}` must be reachable, got {show_text(str(error))}. Run the command again; what came is kept."
            ) from error
        return total

    @staticmethod
    def _remember(headers: Any, tag: Path) -> None:
        """Note by what the server tells this version of the file from others; without it, nothing is gone on from."""
        version = headers.get("ETag") or headers.get("Last-Modified")
        if version is None or version.startswith("W/"):
            tag.unlink(missing_ok=True)
        else:
            tag.write_text(version)


def download(file: RemoteFile, directory: Path) -> Path:
    """
    Download a file into a directory, unless it is there and as it should be.

    Raises
    ------
    ValueError
        If the server does not give it, or it is not what was promised.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # what it tells of every file is for its registries
    # Without a checksum, what is there is whole: it gets its name at the end alone.
    try:
        found = pooch.retrieve(file.url, file.hash, file.name, directory, downloader=Downloader(file.bytes))
    except ValueError as error:
        if "hash" not in str(error).lower():
            raise
        raise ValueError(
            f"`{file.url}` must have the checksum {file.hash}, got another one: it was damaged on its way, or the "
            "file on the server has changed. Run the command again; if that does not help, tell the maintainers."
        ) from error
    return Path(found)
