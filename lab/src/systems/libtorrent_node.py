# One node on libtorrent: seed|leech TORRENT DIR ADDR. It makes DIR/ready when it is up and starts at a line of input.
# It makes DIR/done when it has everything, and serves others until the input ends.
import sys, threading, time
import libtorrent as lt

mode, torrent, folder, addr = sys.argv[1:5]
session = lt.session({
    "listen_interfaces": addr + ":6881",
    # The network is closed, so discovery and encryption are off. TCP only.
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False, "in_enc_policy": 2, "out_enc_policy": 2,
    # Connect to all neighbours at once, and reconnect soon.
    "connection_speed": 500, "min_reconnect_time": 1, "min_announce_interval": 2, "announce_to_all_trackers": True,
    "active_limit": 100, "mixed_mode_algorithm": 0, "rate_limit_ip_overhead": False,
    "aio_threads": 2, "hashing_threads": 2, "alert_mask": 0,
})
wanted = lt.add_torrent_params()
wanted.ti = lt.torrent_info(torrent)
wanted.save_path = sys.argv[5] if mode == "seed" else folder
wanted.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
if mode == "seed":
    wanted.flags |= lt.torrent_flags.seed_mode
open(folder + "/ready", "w").close()
sys.stdin.readline()
handle = session.add_torrent(wanted)


def follow():
    asked = time.monotonic()
    while not handle.status().is_seeding:
        if time.monotonic() - asked > 2:
            asked = time.monotonic()
            handle.force_reannounce()
        time.sleep(0.05)
    open(folder + "/done", "w").close()


if mode == "leech":
    threading.Thread(target=follow, daemon=True).start()
sys.stdin.read()
