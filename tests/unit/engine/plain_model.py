"""An independent forward of the original layout in plain torch: no transformers, no converter, no code of the engine.

Slow and obvious on purpose: everything is recomputed for every token, one sample at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, layer_norm, linear, silu

Tensor = torch.Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    # The original normalises in float32 whatever the weights are; so do the native modules.
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


class PlainModel:
    def __init__(self, folder: Path, dtype: torch.dtype = torch.float64) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            if path.name != "reference.safetensors":
                self.weights |= {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        self.dtype = dtype

    def w(self, name: str) -> Tensor:
        return self.weights[name]

    def vision(self, pixels: Tensor) -> Tensor:
        """[n, 3, S, S] normalised to [n, tokens, hidden], CLS first."""
        config = self.config["vision_config"]
        patch, heads = config["patch_size"], config["num_attention_heads"]
        eps = config["layer_norm_eps"]
        n, _, size, _ = pixels.shape
        side = size // patch
        patches = (
            pixels.to(self.dtype)
            .reshape(n, 3, side, patch, side, patch)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(n, side * side, -1)
        )
        kernel = self.w("vision_model.embeddings.patch_embedding.weight").flatten(1)
        x = linear(patches, kernel, self.w("vision_model.embeddings.patch_embedding.bias"))
        x = torch.cat([self.w("vision_model.embeddings.class_embedding").expand(n, -1, -1), x], dim=1)
        x = x + self.w("vision_model.embeddings.position_embedding")
        for number in range(config["num_hidden_layers"]):
            at = f"vision_model.encoder.layers.{number}."
            h = rms(x, self.w(at + "norm1.weight"), eps)
            q, k, v = linear(h, self.w(at + "attn.qkv.weight")).chunk(3, dim=-1)
            q, k = rms(q, self.w(at + "attn.q_norm.weight"), eps), rms(k, self.w(at + "attn.k_norm.weight"), eps)
            q, k, v = (t.reshape(n, t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
            a = ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1) @ v
            a = linear(a.transpose(1, 2).flatten(2), self.w(at + "attn.proj.weight"), self.w(at + "attn.proj.bias"))
            x = x + a * self.w(at + "ls1")
            h = rms(x, self.w(at + "norm2.weight"), eps)
            h = gelu(linear(h, self.w(at + "mlp.fc1.weight"), self.w(at + "mlp.fc1.bias")))
            x = x + linear(h, self.w(at + "mlp.fc2.weight"), self.w(at + "mlp.fc2.bias")) * self.w(at + "ls2")
        return x

    def project(self, hidden: Tensor) -> Tensor:
        """Tower output to visual tokens [n, tokens a tile, text hidden]: pixel shuffle v2 by one half, then mlp1."""
        patches = hidden[:, 1:]
        count, width = patches.shape[1:]
        side = int(count**0.5)
        rows = [
            [
                # v2: channels in the order (row of the pair, column of the pair)
                torch.cat([patches[:, (2 * i + a) * side + 2 * j + b] for a in (0, 1) for b in (0, 1)], dim=-1)
                for j in range(side // 2)
            ]
            for i in range(side // 2)
        ]
        x = torch.stack([cell for row in rows for cell in row], dim=1)
        x = layer_norm(x, (4 * width,), self.w("mlp1.0.weight"), self.w("mlp1.0.bias"), 1e-5)
        x = gelu(linear(x, self.w("mlp1.1.weight"), self.w("mlp1.1.bias")))
        return linear(x, self.w("mlp1.3.weight"), self.w("mlp1.3.bias"))

    def embed(self, ids: list[int], visual: Tensor | None, image_token: int) -> Tensor:
        x = self.w("language_model.model.tok_embeddings.weight")[torch.tensor(ids)].clone()
        if visual is not None:
            x[torch.tensor(ids) == image_token] = visual.reshape(-1, x.shape[-1])
        return x

    def text(self, x: Tensor) -> Tensor:
        """Embeddings [L, hidden] of one sample to logits [L, vocabulary]."""
        config = self.config["llm_config"]
        heads, kv, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
        group, dim, length = heads // kv, config["hidden_size"] // heads, len(x)
        frequency = 1.0 / config["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
        cos, sin = (torch.cat([f(angle), f(angle)], dim=-1).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))

        def rotate(t: Tensor) -> Tensor:
            half = t.shape[-1] // 2
            return t * cos + torch.cat([-t[..., half:], t[..., :half]], dim=-1) * sin

        mask = torch.full((length, length), -torch.inf, dtype=x.dtype).triu(1)
        for number in range(config["num_hidden_layers"]):
            at = f"language_model.model.layers.{number}."
            h = rms(x, self.w(at + "attention_norm.weight"), eps)
            qkv = linear(h, self.w(at + "attention.wqkv.weight")).reshape(length, kv, group + 2, dim)
            q = rotate(qkv[:, :, :group].reshape(length, heads, dim))
            k = rotate(qkv[:, :, group]).repeat_interleave(group, dim=1)
            v = qkv[:, :, group + 1].repeat_interleave(group, dim=1)
            score = torch.einsum("ihd,jhd->hij", q, k) * dim**-0.5 + mask
            a = torch.einsum("hij,jhd->ihd", score.softmax(-1), v).flatten(1)
            x = x + linear(a, self.w(at + "attention.wo.weight"))
            h = rms(x, self.w(at + "ffn_norm.weight"), eps)
            gate = silu(linear(h, self.w(at + "feed_forward.w1.weight"))) * linear(
                h, self.w(at + "feed_forward.w3.weight")
            )
            x = x + linear(gate, self.w(at + "feed_forward.w2.weight"))
        return linear(rms(x, self.w("language_model.model.norm.weight"), eps), self.w("language_model.output.weight"))

    def greedy(
        self,
        ids: list[int],
        visual: Tensor | None,
        image_token: int,
        *,
        count: int,
        penalty: float = 1.0,
        stop: int | None = None,
        bos: int = 1,
    ) -> list[int]:
        """The answer's ids; the repetition penalty covers {BOS} and the answer."""
        x = self.embed(ids, visual, image_token)
        out: list[int] = []
        for _ in range(count):
            scores = self.text(x)[-1].clone()
            for token in {bos, *out}:
                scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
            token = int(scores.argmax())
            if token == stop:
                break
            out.append(token)
            x = torch.cat([x, self.embed([token], None, image_token)])
        return out
