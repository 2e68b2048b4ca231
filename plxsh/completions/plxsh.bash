# Completion of plxsh and the original tools for bash. It knows no commands: it asks plxsh.

_plxsh() {
    # The plxsh beside the program on the line, as in .venv/bin/plxsh; else that in the PATH.
    local program=${1%"${1##*/}"}plxsh answer
    # shellcheck disable=SC2088  # the tilde as it was typed
    [[ $program != '~/'* ]] || program=$HOME${program#'~'}
    [[ $program == */* && -x $program ]] || program=plxsh

    # COMP_WORDS is split at @, : and =, so plxsh gets the line up to the cursor, and the end
    # of it that readline is going to replace. Its own configuration is that of the line.
    mapfile -t answer < <("$program" --config /dev/null -o plain completion answer bash -- \
        "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null </dev/null)
    COMPREPLY=()
    case ${answer[0]-} in
    files) compopt -o default ;;
    words) COMPREPLY=("${answer[@]:1}") ;;
    esac
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *@ ]]; then
        compopt -o nospace # the snapshot comes next
    fi
}

complete -o nosort -F _plxsh plxsh parallax-mkfs parallaxd plxlockmaster vdi_create vdi_fill vdi_list \
    vdi_snap vdi_snap_delete vdi_snap_list vdi_snap_offline vdi_tree vdi_validate
