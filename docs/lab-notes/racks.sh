#!/usr/bin/env bash
# Racks of network namespaces with shaped uplinks, for comparisons with other systems. Needs root and iproute2.
#   racks.sh up | counters | down      RACKS=4 HOSTS=4 UPLINK=200 SEEDER=400 in the environment; rates in Mbit/s, 0 = none
# Addresses: seeder 10.78.0.1, tracker 10.78.0.2, host H of rack R 10.78.R.H. Namespaces begin with "rk-".
set -euo pipefail
RACKS=${RACKS:-4} HOSTS=${HOSTS:-4} UPLINK=${UPLINK:-200} SEEDER=${SEEDER:-400}

shape() { # namespace, device, Mbit/s: a token bucket with 10 ms of burst and 40 ms of queue
    local burst=$(($3 * 10 / 8)) # Mbit/s * 10 ms in kilobytes
    [ "$3" = 0 ] || ip netns exec "$1" tc qdisc add dev "$2" root tbf rate "$3mbit" \
        burst "$((burst > 64 ? burst : 64))kb" latency 40ms
}
switch() {
    ip netns add "$1"
    ip -n "$1" link add br0 type bridge
    ip -n "$1" link set br0 up
}
attach() { # machine, switch, port, address, Mbit/s
    ip netns add "$1"
    ip link add eth0 netns "$1" type veth peer name "$3" netns "$2"
    ip -n "$1" addr add "$4/16" dev eth0
    ip -n "$1" link set eth0 up
    ip -n "$1" link set lo up
    ip -n "$2" link set "$3" master br0 up
    shape "$1" eth0 "$5"
    shape "$2" "$3" "$5"
}
up() {
    down
    switch rk-core
    attach rk-seeder rk-core p-seeder 10.78.0.1 "$SEEDER"
    attach rk-tracker rk-core p-tracker 10.78.0.2 0
    for r in $(seq "$RACKS"); do
        switch "rk-rack$r"
        ip link add up0 netns "rk-rack$r" type veth peer name "down$r" netns rk-core
        ip -n "rk-rack$r" link set up0 master br0 up
        ip -n rk-core link set "down$r" master br0 up
        shape "rk-rack$r" up0 "$UPLINK"
        shape rk-core "down$r" "$UPLINK"
        for h in $(seq "$HOSTS"); do attach "rk-r${r}h$h" "rk-rack$r" "p$h" "10.78.$r.$h" 0; done
    done
}
counters() { # bytes in and out, seen from the seeder and from each rack
    bytes() { ip -n "$1" -s -j link show "$2" | sed -E 's/.*"rx":\{"bytes":([0-9]+).*"tx":\{"bytes":([0-9]+).*/\1 \2/'; }
    echo "seeder $(bytes rk-seeder eth0)"
    for r in $(seq "$RACKS"); do echo "rack$r $(bytes "rk-rack$r" up0)"; done
}
down() { ip netns list | awk '/^rk-/ {print $1}' | xargs -r -n1 ip netns del; }

case ${1:-} in
up | counters | down) "$1" ;;
*) sed -n '2,4s/^# //p' "$0"; exit 2 ;;
esac
