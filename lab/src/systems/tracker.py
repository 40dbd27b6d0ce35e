# A BitTorrent tracker for one torrent. Arguments: ADDR PORT FILE. It makes FILE when it listens, and appends a byte at each
# announcement.
import socket, struct, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

addr, port, heard = sys.argv[1], int(sys.argv[2]), sys.argv[3]
peers = {}


class Tracker(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        asked = dict(pair.split("=", 1) for pair in urlsplit(self.path).query.split("&") if "=" in pair)
        me = (self.client_address[0], int(asked.get("port", "6881")))
        if asked.get("event") == "stopped":
            peers.pop(me, None)
        else:
            peers[me] = True
        rows = b"".join(socket.inet_aton(a) + struct.pack(">H", p) for a, p in list(peers) if (a, p) != me)
        body = b"d8:completei1e10:incompletei1e8:intervali2e12:min intervali1e5:peers%d:%se" % (len(rows), rows)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        with open(heard, "ab") as out:
            out.write(b".")


server = ThreadingHTTPServer((addr, port), Tracker)
open(heard, "ab").close()
server.serve_forever()
