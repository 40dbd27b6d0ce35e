# Makes a torrent of one file. Arguments: PATH TORRENT TRACKER_URL
import os, sys
import libtorrent as lt

path, torrent, url = sys.argv[1:4]
files = lt.file_storage()
lt.add_files(files, path)
made = lt.create_torrent(files, 1 << 20, lt.create_torrent.v1_only)
made.add_tracker(url)
lt.set_piece_hashes(made, os.path.dirname(path))
with open(torrent, "wb") as out:
    out.write(lt.bencode(made.generate()))
