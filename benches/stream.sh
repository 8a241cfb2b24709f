#!/usr/bin/env bash
# How fast is a stream from one command line to another? 1 GiB through `ringpipe send` and `recv`, beside a named pipe between two `cat`, and
# `socat` over a Unix socket. All take turns in each round, in an order that moves on by one; figures are medians of the rounds, in GB/s, and ratios medians
# of the rounds' own ratios, ringpipe's by the other's.
#
#     cargo build --release && benches/stream.sh [ROUNDS]        RINGPIPE=path/to/ringpipe for another build
#
# What the pipes at either end allow is measured as well: `cat` alone, from the same input to the same output, with nothing in between. The seconds are
# processor time of all processes of a transfer, those at the ends included: where there are fewer processors than processes, they are the limit.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-7}
tool=${RINGPIPE:-target/release/ringpipe}
[ -x "$tool" ] || { echo "there is no $tool: cargo build --release" >&2; exit 1; }
dir=$(mktemp -d /dev/shm/ringpipe-stream.XXXXXX)
TIMEFORMAT='%R %U %S'
exec 4>&2
trap 'rm -rf "$dir"' EXIT
size=$((1 << 30))
head -c "$size" /dev/zero >"$dir/file"
head -c $((64 << 20)) /dev/urandom >"$dir/check"

# Each reads standard input, and writes standard output.
through_ringpipe() {
    timeout 120 "$tool" recv "$dir/name" 3<&- &
    timeout 120 "$tool" send "$dir/name" <&3
    wait
}
through_fifo() {
    rm -f "$dir/fifo"
    mkfifo "$dir/fifo"
    timeout 120 cat <"$dir/fifo" 3<&- &
    timeout 120 cat <&3 >"$dir/fifo"
    wait
}
through_socat() {
    rm -f "$dir/socket"
    timeout 120 socat -u "UNIX-LISTEN:$dir/socket" STDOUT 3<&- &
    until [ -S "$dir/socket" ]; do sleep 0.001; done
    timeout 120 socat -u STDIN "UNIX-CONNECT:$dir/socket" <&3
    wait
}
through_nothing() { cat <&3; }

transports=(ringpipe fifo nothing)
if command -v socat >/dev/null; then transports+=(socat); else echo "there is no socat: left out" >&2; fi

# From 3, since what is started in the background has no standard input.
from() { # TRANSPORT INPUT
    case $2 in
    pipe) through_"$1" 3< <(head -c "$size" /dev/zero) ;;
    file) through_"$1" 3<"$dir/file" ;;
    check) through_"$1" 3<"$dir/check" ;;
    esac
}
transfer() { # TRANSPORT INPUT OUTPUT
    case $3 in
    null) from "$1" "$2" >/dev/null ;;
    pipe) from "$1" "$2" | cat >/dev/null ;;
    check) from "$1" "$2" | cmp - "$dir/check" ;;
    esac
}

for transport in "${transports[@]}"; do
    transfer "$transport" check check || { echo "$transport garbles what it carries" >&2; exit 1; }
done

cells=("pipe null" "file null" "pipe pipe" "file pipe")
for ((round = 0; round < rounds; round++)); do
    for cell in "${cells[@]}"; do
        read -r input output <<<"$cell"
        for ((i = 0; i < ${#transports[@]}; i++)); do
            transport=${transports[(round + i) % ${#transports[@]}]}
            spent=$({ time transfer "$transport" "$input" "$output" 2>&4; } 2>&1)
            echo "$round $input $output $transport $spent"
        done
    done
done | awk -v size="$size" '
    function median(list, n,    i, j, t) {
        for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j - 1] > list[j]; j--) { t = list[j]; list[j] = list[j - 1]; list[j - 1] = t }
        return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    { rate[$2, $3, $4, $1] = size / 1e9 / $5; spent[$2, $3, $4, $1] = $6 + $7; rounds = $1 + 1 }
    function figure(of, i, o, t,    r, list) { for (r = 0; r < rounds; r++) list[r + 1] = of[i, o, t, r]; return median(list, rounds) }
    function ratio(i, o, t,    r, list) { for (r = 0; r < rounds; r++) list[r + 1] = rate[i, o, "ringpipe", r] / rate[i, o, t, r]; return median(list, rounds) }
    function shown(i, o, t) { return (i, o, t, 0) in rate ? sprintf("%.2f GB/s, %.2f s", figure(rate, i, o, t), figure(spent, i, o, t)) : "-" }
    function beside(i, o, t) { return (i, o, t, 0) in rate ? sprintf("%s | %.1fx", shown(i, o, t), ratio(i, o, t)) : "- | -" }
    END {
        print "| from | to | ringpipe | mkfifo and cat | | socat | | cat alone |"
        print "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
        cells = split("pipe null,file null,pipe pipe,file pipe", cell, ",")
        from["pipe"] = "`head -c 1G /dev/zero`"; from["file"] = "a file in memory"
        to["null"] = "`/dev/null`"; to["pipe"] = "`cat >/dev/null`"
        for (c = 1; c <= cells; c++) {
            split(cell[c], e, " ")
            print "| " from[e[1]] " | " to[e[2]] " | " shown(e[1], e[2], "ringpipe") " | " beside(e[1], e[2], "fifo") " | " \
                beside(e[1], e[2], "socat") " | " shown(e[1], e[2], "nothing") " |"
        }
    }'
