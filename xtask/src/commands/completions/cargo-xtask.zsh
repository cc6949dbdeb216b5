# Completes `cargo xtask` in zsh. In ~/.zshrc, after `compinit`:
#
#     [ -r ~/.cargo-xtask.zsh ] && . ~/.cargo-xtask.zsh
#
# after `cargo xtask completions zsh > ~/.cargo-xtask.zsh`. Everything else of cargo is completed as before.

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
    if [ "${words[2]}" != xtask ] || [ "$CURRENT" -lt 3 ]; then
        if [ -n "$_cargo_xtask_before" ]; then "$_cargo_xtask_before" "$@"; fi
        return
    fi
    local -a found
    local line files
    while IFS= read -r line; do
        if [ "$line" = :files ]; then
            files=1
        else
            found+=("${line/$'\t'/:}")
        fi
    done < <(_cargo_xtask_ask "${(@)words[3,$CURRENT]}")
    if [ -n "$files" ]; then _files; fi
    if [ "${#found}" -gt 0 ]; then _describe 'cargo xtask' found; fi
}

if [ "${_comps[cargo]-}" != _cargo_xtask ]; then _cargo_xtask_before=${_comps[cargo]-}; fi
compdef _cargo_xtask cargo
