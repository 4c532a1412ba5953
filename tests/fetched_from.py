"""An HTTP server on this machine that stands for the publishers of data sets, and archives of their layouts."""

import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SST2 = {
    "SST-2/dev.tsv": 'sentence\tlabel\na fine film .\t1\na "poor" one .\t0\n',
    "SST-2/test.tsv": "index\tsentence\n",
}
WIKITEXT = {"wikitext-2-raw/wiki.test.raw": " \n = Heading = \n \n Text of an article . \n"}


def coco(images):
    """Captions of `images` images, two of each, the first with a line break."""
    found = [
        {"id": 10 * image + k, "image_id": image, "caption": f"A thing {image}\n seen {k} times. "}
        for image in images
        for k in (1, 0)
    ]
    return {"annotations/captions_val2017.json": json.dumps({"images": [], "annotations": found})}


def archive(members):
    """A ZIP archive of {name: text or bytes}, as bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in members.items():
            file.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)  # without a date: always the same bytes
    return content.getvalue()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Server:
    """Serves `files`, {path: bytes}, and notes in `asked` the paths it was asked for.

    Paths in `broken` end in the middle.
    """

    def __init__(self, files, broken=()):
        self.files, self.broken, self.asked = files, broken, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                content = server.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if self.path in server.broken else content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
