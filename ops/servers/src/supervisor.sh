# Holds one server as its child and does what it is told, line by line, on its standard input. When that closes, because
# whoever started it has ended in whatever way, it kills the server and removes the folder.
#
#   supervisor FOLDER server|speaker COMMAND…
#
# Orders: start, KILL, STOP, CONT, TERM, "reap", which waits for the end of the server and tells its exit code, and
# "tell LINE", which hands the line to the server's standard input. Each is answered with one line. A speaker's standard
# output goes where the answers go, a mere server's goes to the log.
folder=$1
kind=$2
shift 2
pid=

end_server() {
    [ -z "$pid" ] || { kill -KILL "-$pid" "$pid"; wait "$pid"; } 2>/dev/null
    pid=
    exec 3>&-
}

finish() {
    end_server
    # Others that end now may still write below it.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        rm -rf "$folder" 2>/dev/null && break
        sleep 0.2
    done
}
trap finish EXIT
trap 'exit 1' HUP INT TERM
# Whoever reads the answers may be gone already; then there is still a folder to remove.
trap : PIPE

mkfifo "$folder/commands"
case $kind in
speaker) exec 5>&1 ;;
*) exec 5>>"$folder/log" ;;
esac

while read -r order rest; do
    case $order in
    start)
        end_server
        # A group of its own, so that what the server starts dies with it. It and we wait for each other at the pipe.
        setsid "$@" <"$folder/commands" >&5 2>>"$folder/log" 5>&- &
        pid=$!
        exec 3>"$folder/commands"
        echo "supervisor: $pid"
        ;;
    KILL)
        end_server
        echo "supervisor: killed"
        ;;
    TERM)
        # It alone: what it has started is its own business.
        [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null
        echo "supervisor: signalled"
        ;;
    reap)
        status=0
        [ -z "$pid" ] || wait "$pid" || status=$?
        pid=
        exec 3>&-
        echo "supervisor: $status"
        ;;
    STOP | CONT)
        [ -z "$pid" ] || kill "-$order" "$pid" 2>/dev/null
        echo "supervisor: signalled"
        ;;
    tell)
        if printf '%s\n' "$rest" >&3; then echo "supervisor: told"; else echo "supervisor: the server does not listen"; fi
        ;;
    esac
done
