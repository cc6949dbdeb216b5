# Completes `cargo xtask` in fish:
#
#     cargo xtask completions fish > ~/.config/fish/conf.d/cargo-xtask.fish
#
# Everything else of cargo is completed as before.

# Asks the tool of the workspace that this folder is in, as it was last built; silent outside of one.
function __cargo_xtask_ask
    set -l words (commandline -opc) (commandline -ct)
    set -l folder $PWD
    while test -n "$folder"
        set -l target $folder/target
        if set -q CARGO_TARGET_DIR
            set target $CARGO_TARGET_DIR
        end
        if test -f $folder/.cargo/config.toml; and test -x $target/xtask/xtask
            for line in ($target/xtask/xtask __complete -- $words[3..-1] 2>/dev/null)
                if test "$line" = :files
                    __fish_complete_path (commandline -ct)
                else
                    echo $line
                end
            end
            return
        end
        set folder (string replace -r '/[^/]*$' '' -- $folder)
    end
end

function __cargo_xtask_here
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test "$words[2]" = xtask
end

complete -c cargo -n __cargo_xtask_here -f -a '(__cargo_xtask_ask)'
