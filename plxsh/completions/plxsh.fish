# Completion of plxsh and the original tools for fish. It knows no commands: it asks plxsh.

# Puts what can stand at the cursor into a variable; fails where fish is to offer files.
function __plxsh_ask
    set -l tokens (commandline -opc)
    set -l fragment (string unescape -- (commandline -ct))

    # The plxsh beside the program on the line, as in .venv/bin/plxsh; else that in the PATH.
    set -l program (string replace -r '^~/' "$HOME/" -- $tokens[1] | string replace -r '[^/]*$' plxsh)
    test -x "$program"; or set program plxsh

    # Its own configuration is that of the line.
    set -l answer ($program --config /dev/null -o plain completion answer fish -- \
        $tokens "$fragment" 2>/dev/null </dev/null)
    set -g __plxsh_answer $answer[2..]
    test "$answer[1]" != files
end

for program in plxsh parallax-mkfs parallaxd plxlockmaster vdi_create vdi_fill vdi_list vdi_snap \
        vdi_snap_delete vdi_snap_list vdi_snap_offline vdi_tree vdi_validate
    complete -c $program -n __plxsh_ask -f -k -a '$__plxsh_answer'
end
