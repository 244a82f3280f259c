"""Completion of the command line in bash, zsh and fish, made from the flags themselves.

`headrace completion SHELL` prints it: `headrace completion bash > ~/.local/share/bash-completion/completions/headrace`,
`headrace completion zsh > "${fpath[1]}/_headrace"`, `headrace completion fish > ~/.config/fish/completions/headrace.fish`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .flags import COMMANDS, flags_of

SHELLS = ("bash", "zsh", "fish")
_OTHERS = ("help", "version", "completion")


def completion(shell: str) -> str:
    """The script for one of `SHELLS`."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _words(action: argparse.Action) -> Iterator[str]:
    """The flag as it is typed: with its equals sign, and each value of those that have a choice."""
    flag = action.option_strings[0]
    if action.nargs == 0:
        yield flag
    else:
        yield from (f"{flag}={choice}" for choice in action.choices or ("",))


def _bash() -> str:
    cases = "\n".join(
        f"    {command}) words='{' '.join(word for action in flags_of(command) for word in _words(action))}' ;;"
        for command in COMMANDS
    )
    return f"""# bash completion of headrace
_headrace() {{
  local line="${{COMP_LINE:0:COMP_POINT}}" command=run words word first
  local current="${{line##*[[:space:]]}}"
  for word in "${{COMP_WORDS[@]:1}}"; do
    case "$word" in {"|".join(COMMANDS)}) command="$word"; break ;; -*) break ;; esac
  done
  case "$command" in
{cases}
  esac
  first="${{line%"$current"}}"
  [[ "$first" =~ ^[[:space:]]*[^[:space:]]+[[:space:]]+$ ]] && words="{" ".join((*COMMANDS, *_OTHERS))} $words"
  # bash takes a flag and its value for two words, as = is one of its own separators.
  [[ "$current" == *=* ]] && words="${{words//"${{current%%=*}}="/}}" && current="${{current#*=}}"
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [[ ${{#COMPREPLY[@]}} == 1 && "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace
  [[ ${{#COMPREPLY[@]}} == 0 && "$line" == *=* ]] && COMPREPLY=($(compgen -f -- "$current"))
  return 0
}}
complete -F _headrace headrace
"""


def _zsh() -> str:
    cases = "\n".join(
        f"    ({command}) flags=({' '.join(_zsh_flag(action) for action in flags_of(command))}) ;;"
        for command in COMMANDS
    )
    return f"""#compdef headrace
# zsh completion of headrace
_headrace() {{
  local command=run
  local -a flags
  case $words[2] in ({"|".join(COMMANDS)}) command=$words[2] ;; esac
  case $command in
{cases}
  esac
  if (( CURRENT == 2 )); then
    _alternative 'commands:command:({" ".join((*COMMANDS, *_OTHERS))})' && [[ $words[2] != -* ]] && return
  fi
  _arguments $flags
}}
_headrace "$@"
"""


def _zsh_flag(action: argparse.Action) -> str:
    """As `_arguments` of zsh reads it (zshcompsys(1))."""
    flag = action.option_strings[0]
    again = "*" if isinstance(action, argparse._AppendAction) else ""
    said = _plain(action).replace("[", r"\[").replace("]", r"\]").replace(":", r"\:")
    if action.nargs == 0:
        return _quoted(f"{again}{flag}[{said}]")
    values = f"({' '.join(action.choices)})" if action.choices else "_files"
    return _quoted(f"{again}{flag}=-[{said}]:{action.dest}:{values}")


def _fish() -> str:
    every = " ".join((*COMMANDS, *_OTHERS))
    lines = ["# fish completion of headrace", f"complete -c headrace -n __fish_is_first_arg -f -a '{every}'"]
    seen = {command: {action.dest for action in flags_of(command)} for command in COMMANDS}
    for action in {action.dest: action for command in COMMANDS for action in flags_of(command)}.values():
        without = [command for command in COMMANDS if action.dest not in seen[command]]
        unless = f"not __fish_seen_subcommand_from {' '.join(without)}" if without else "true"
        value = f" -x -a '{' '.join(action.choices)}'" if action.choices else "" if action.nargs == 0 else " -r"
        name = action.option_strings[0].removeprefix("--")
        lines.append(f"complete -c headrace -n '{unless}' -l {name}{value} -d {_quoted(_plain(action))}")
    return "\n".join(lines) + "\n"


def _plain(action: argparse.Action) -> str:
    """The help's beginning, on one line."""
    text = " ".join((action.help or "").replace("%%", "%").split())
    return text if len(text) <= 70 else f"{text[:69].rstrip()}…"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", r"'\''") + "'"
