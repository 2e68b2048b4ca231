#compdef plxsh parallax-mkfs parallaxd plxlockmaster vdi_create vdi_fill vdi_list vdi_snap vdi_snap_delete vdi_snap_list vdi_snap_offline vdi_tree vdi_validate
# Completion of plxsh and the original tools for zsh. It knows no commands: it asks plxsh.

_plxsh() {
    local program=plxsh line name about
    local -a answer whole open

    # The plxsh beside the program on the line, as in .venv/bin/plxsh; else that in the PATH.
    [[ $words[1] == */* ]] && program=${(Q)words[1]/#\~\//$HOME/}
    [[ $program == */* ]] && program=${program:h}/plxsh
    [[ -x $program ]] || program=plxsh

    # The words and what there is of the last one, without quotes. Its own configuration is
    # that of the line.
    local fragment=$PREFIX
    [[ $compstate[quote] == \' ]] || fragment=${(Q)PREFIX}
    answer=("${(@f)$($program --config /dev/null -o plain completion answer zsh -- \
        "${(@Q)words[1,CURRENT-1]}" "$fragment" 2>/dev/null </dev/null)}")
    if [[ $answer[1] == files ]]; then
        compset -P '--*='
        _files
        return
    fi
    # No space behind a VDI whose snapshot comes next, or inside of quotes that are closed.
    for line in "${(@)answer[2,-1]}"; do
        name=${line%%$'\t'*} about=${line#*$'\t'}
        line=${${name//\\/\\\\}//:/\\:}${about:+:$about}
        if [[ $name == *@ || -n $QISUFFIX ]]; then open+=("$line"); else whole+=("$line"); fi
    done
    _describe -V plxsh whole -- open -S ''
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _plxsh "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
    compdef _plxsh plxsh parallax-mkfs parallaxd plxlockmaster vdi_create vdi_fill vdi_list vdi_snap \
        vdi_snap_delete vdi_snap_list vdi_snap_offline vdi_tree vdi_validate
fi
