# Completes `cargo xtask` in bash. In ~/.bashrc:
#
#     [ -r ~/.cargo-xtask.bash ] && . ~/.cargo-xtask.bash
#
# after `cargo xtask completions bash > ~/.cargo-xtask.bash`. Everything else of cargo is completed as before.

# Asks the tool of the workspace that this folder is in, as it was last built; silent outside of one.
_cargo_xtask_ask() {
    local folder=$PWD tool
    while [ -n "$folder" ]; do
        tool=${CARGO_TARGET_DIR:-$folder/target}/xtask/xtask
        if [ -f "$folder/.cargo/config.toml" ] && [ -x "$tool" ]; then
            "$tool" __complete -- "$@" 2>/dev/null
            return
        fi
        folder=${folder%/*}
    done
}

_cargo_xtask() {
    if [ "${COMP_WORDS[1]-}" != xtask ] || [ "$COMP_CWORD" -lt 2 ]; then
        if [ -n "$_cargo_xtask_before" ]; then "$_cargo_xtask_before" "$@"; fi
        return
    fi
    local word
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        if [ "$word" = :files ]; then
            compopt -o default 2>/dev/null
        else
            COMPREPLY+=("$word")
        fi
    done < <(_cargo_xtask_ask "${COMP_WORDS[@]:2:COMP_CWORD-1}")
}

# bash-completion loads cargo's own rules at the first use of cargo: now, then, so that they are known here.
if declare -F _completion_loader >/dev/null; then _completion_loader cargo; fi
_cargo_xtask_found=$(complete -p cargo 2>/dev/null | sed -n 's/.* -F \([^ ]*\).*/\1/p')
if [ "$_cargo_xtask_found" != _cargo_xtask ]; then _cargo_xtask_before=$_cargo_xtask_found; fi
unset _cargo_xtask_found
complete -o bashdefault -o default -F _cargo_xtask cargo
