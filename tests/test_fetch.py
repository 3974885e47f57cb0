"""Downloads from a server on this machine and from a stand-in for npm; the network is never used."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import subprocess
import tarfile
import tempfile
import threading
from pathlib import Path
from unittest import mock

from absl.testing import absltest

from atalaia import fetch
from atalaia.errors import UserError

WHOLE = bytes(range(256)) * 10_000  # 2.56 MB: several chunks
ALTERED = b"x" + WHOLE[1:]
NPM = """#!/bin/sh
echo "$*" >> "{log}"
{action}
"""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the next of the server's bodies, promising the whole length: b"" is a 404, None silence."""

    def do_GET(self):
        body = self.server.bodies.pop(0)
        if body is None:
            self.server.released.wait(10)
            return
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(WHOLE) if body else 0))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class FetchTest(absltest.TestCase):
    def setUp(self):
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.cache, self.folder = Path(folder) / "cache", Path(folder)
        self.server = self.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler))
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.addCleanup(self.server.shutdown)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file.bin"
        self.sha256 = hashlib.sha256(WHOLE).hexdigest()
        common = f'version = "1"\nsize = {len(WHOLE)}\nsha256 = "{self.sha256}"\nlicence = ""\nwhat = ""\n'
        manifest = self.folder / "manifest.toml"
        web = f'[web]\nurl = "{self.url}"\nfile = "file.bin"\n{common}'
        pypi = f'[pypi]\npypi = "pack==1"\nfile = "pack-1.tar.gz"\n{common}'
        manifest.write_text(f'{web}{pypi}[npm]\nnpm = "pack@1"\nfile = "pack-1.tgz"\n{common}')
        self.enter_context(mock.patch.object(fetch, "MANIFEST", manifest))
        self.stderr = self.enter_context(contextlib.redirect_stderr(io.StringIO()))

    def _npm(self, action: str):
        """Puts an `npm` that runs `action` first on PATH; its arguments are logged."""
        npm = self.folder / "bin" / "npm"
        npm.parent.mkdir()
        npm.write_text(NPM.format(log=self.folder / "npm.log", action=action))
        npm.chmod(0o755)
        self.enter_context(mock.patch.dict(os.environ, PATH=f"{npm.parent}:{os.environ['PATH']}"))

    def _cached(self):
        return sorted(path.name for path in self.cache.iterdir())

    def test_downloads_once(self):
        self.server.bodies = [WHOLE]
        path = fetch.fetch("web", self.cache)
        self.assertEqual(path, self.cache / "file.bin")
        self.assertEqual(path.read_bytes(), WHOLE)
        self.assertEqual(fetch.fetch("web", self.cache), path)  # a second request would find no body
        self.assertEqual(self._cached(), ["file.bin"])

    def test_wrong_download_is_tried_once_more(self):
        for name, wrong in (("truncated", WHOLE[:1_500_000]), ("altered", ALTERED)):
            with self.subTest(name):
                self.cache = self.folder / name
                self.server.bodies = [wrong, WHOLE]
                self.assertEqual(fetch.fetch("web", self.cache).read_bytes(), WHOLE)

    def test_wrong_twice_names_both_digests(self):
        self.server.bodies = [ALTERED, ALTERED]
        with self.assertRaises(UserError) as raised:
            fetch.fetch("web", self.cache)
        for part in ("file.bin", self.sha256, hashlib.sha256(ALTERED).hexdigest(), str(self.cache)):
            self.assertIn(part, str(raised.exception))
        self.assertEmpty(self._cached())

    def test_damaged_file_in_the_cache_is_replaced(self):
        self.cache.mkdir()
        (self.cache / "file.bin").write_bytes(ALTERED)
        self.server.bodies = [WHOLE]
        self.assertEqual(fetch.fetch("web", self.cache).read_bytes(), WHOLE)
        self.assertIn("altered", self.stderr.getvalue())

    def test_http_error(self):
        self.server.bodies = [b""]
        with self.assertRaisesRegex(UserError, r"cannot download http.*404.*put the file at .*file\.bin by hand"):
            fetch.fetch("web", self.cache)

    def test_no_network(self):
        self.server.shutdown()
        self.server.server_close()
        with self.assertRaisesRegex(UserError, "cannot download http.*refused"):
            fetch.fetch("web", self.cache)
        self.assertEmpty(self._cached())

    def test_silent_server(self):
        self.server.bodies, self.server.released = [None], threading.Event()
        self.addCleanup(self.server.released.set)
        with (
            mock.patch.object(fetch, "TIMEOUT", 0.1),
            self.assertRaisesRegex(UserError, "cannot download http.*timed out"),
        ):
            fetch.fetch("web", self.cache)

    def test_interruption_and_full_disk_leave_nothing(self):
        for error in (KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")):
            self.server.bodies = [WHOLE]
            with (
                mock.patch.object(fetch.Progress, "update", side_effect=error),
                self.assertRaises(type(error)) as raised,
            ):
                fetch.fetch("web", self.cache)
            self.assertIs(raised.exception, error)
            self.assertEmpty(self._cached())

    def _packed(self, files, level):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=level) as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(f"name-of-a-commit/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return packed.getvalue()

    def test_an_archive_that_is_packed_anew_is_known_by_its_contents(self):
        files = {"photos/b.png": b"2", "photos/a.png": b"1", "README": b"any", "photos/unknown.png": b"3"}
        listed = self.folder / "listed"
        for name in ("a", "b"):
            (listed / "photos").mkdir(parents=True, exist_ok=True)
            (listed / "photos" / f"{name}.png").write_bytes(files[f"photos/{name}.png"])
        lines = subprocess.run(["sha256sum", "photos/a.png", "photos/b.png"], cwd=listed, capture_output=True).stdout
        entry = f'[pack]\nversion = "1"\nurl = "{self.url}"\nfile = "pack.tar.gz"\nsize = 1\nlicence = ""\nwhat = ""\n'
        entry += f'within = "photos/(?!unknown).*"\ncontents = "{hashlib.sha256(lines).hexdigest()}"\n'
        fetch.MANIFEST.write_text(entry)
        path = self.cache / "pack.tar.gz"
        self.cache.mkdir()
        for level in (1, 9):
            path.write_bytes(self._packed(files | {"README": b"%d" % level}, level))
            self.assertEqual(fetch.fetch("pack", self.cache), path)
        for wrong in (self._packed(files | {"photos/b.png": b"4"}, 9), self._packed(files, 9)[:-30], b"no archive"):
            path.write_bytes(wrong)
            self.server.bodies = [b"", b""]
            with self.assertRaisesRegex(UserError, "pack.tar.gz by hand"):
                fetch.fetch("pack", self.cache)
        self.server.bodies = [WHOLE, WHOLE]
        with self.assertRaisesRegex(UserError, "expected files with sha256 .*, found no whole archive"):
            fetch.fetch("pack", self.cache)

    def test_npm(self):
        source = self.folder / "source"
        source.write_bytes(WHOLE)
        self._npm(f'cp "{source}" pack-1.tgz')
        self.assertEqual(fetch.fetch("npm", self.cache).read_bytes(), WHOLE)
        self.assertEqual(self._cached(), ["pack-1.tgz"])
        arguments = (self.folder / "npm.log").read_text().split()
        self.assertEqual((arguments[0], arguments[-1]), ("pack", "pack@1"))

    def test_npm_fails(self):
        self._npm('echo "npm error code ENOTFOUND" >&2; exit 1')
        with self.assertRaisesRegex(UserError, r"npm cannot fetch pack@1 \(code ENOTFOUND\).*pack-1\.tgz by hand"):
            fetch.fetch("npm", self.cache)

    def test_npm_with_a_full_disk(self):
        self._npm('echo "npm error code ENOSPC" >&2; exit 1')
        with self.assertRaises(OSError) as raised:
            fetch.fetch("npm", self.cache)
        self.assertEqual(raised.exception.errno, errno.ENOSPC)

    def test_npm_is_missing(self):
        with (
            mock.patch.dict(os.environ, PATH=str(self.folder)),
            self.assertRaisesRegex(UserError, r"not installed.*pack-1\.tgz by hand"),
        ):
            fetch.fetch("npm", self.cache)

    def _pip(self, action: str):
        """Lets `python -m pip` run `action` instead; its arguments are logged."""
        python = self.folder / "python"
        python.write_text(NPM.format(log=self.folder / "pip.log", action=action))
        python.chmod(0o755)
        self.enter_context(mock.patch.object(fetch.sys, "executable", str(python)))

    def test_pip_knows_the_digest_before_it_runs_any_code(self):
        source = self.folder / "source"
        source.write_bytes(WHOLE)
        self._pip(f'cat requirements.txt >> "{self.folder / "wanted"}"; cp "{source}" pack-1.tar.gz')
        self.assertEqual(fetch.fetch("pypi", self.cache).read_bytes(), WHOLE)
        self.assertEqual(self._cached(), ["pack-1.tar.gz"])
        self.assertEqual((self.folder / "wanted").read_text(), f"pack==1 --hash=sha256:{self.sha256}\n")
        arguments = (self.folder / "pip.log").read_text().split()
        self.assertContainsSubset({"download", "--no-deps", "--require-hashes", "--no-binary=:all:"}, arguments)

    def test_pip_fails(self):
        self._pip('echo "WARNING: old" >&2; echo "ERROR: No matching distribution" >&2; exit 1')
        with self.assertRaisesRegex(UserError, r"pip cannot fetch pack==1 \(No matching.*pack-1\.tar\.gz by hand"):
            fetch.fetch("pypi", self.cache)

    def test_any_goes_on_to_the_next(self):
        self._npm('echo "npm error code ENOTFOUND" >&2; exit 1')
        self.server.bodies = [WHOLE]
        self.assertEqual(fetch.fetch_any(("npm", "web"), self.cache).name, "file.bin")
        self.assertRegex(self.stderr.getvalue(), "ENOTFOUND.*going on to web")

    def test_any_prefers_what_is_there(self):
        self.cache.mkdir()
        (self.cache / "pack-1.tgz").write_bytes(WHOLE)
        self.assertEqual(fetch.fetch_any(("web", "npm"), self.cache).name, "pack-1.tgz")

    def test_none_of_any_names_each_cause(self):
        self._npm('echo "npm error code ENOTFOUND" >&2; exit 1')
        self.server.bodies = [b""]
        with self.assertRaisesRegex(UserError, r"web: .*404.*file\.bin by hand; npm: .*ENOTFOUND.*pack-1\.tgz by hand"):
            fetch.fetch_any(("web", "npm"), self.cache)


class ManifestTest(absltest.TestCase):
    def test_entries_are_complete(self):
        for artefact in fetch.manifest().values():
            sources = [artefact.url, artefact.npm, artefact.pypi]
            self.assertEqual(sources.count(""), 2, artefact.name)
            self.assertRegex(artefact.sha256 + artefact.contents, "^[0-9a-f]{64}$")
            self.assertGreater(artefact.size, 0)
            self.assertNotEmpty(artefact.licence)


if __name__ == "__main__":
    absltest.main()
