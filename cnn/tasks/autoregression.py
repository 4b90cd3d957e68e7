"""Autoregression: each value of a sequence from those before it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn import pictures
from cnn.config import Spec
from cnn.errors import InputError
from cnn.tasks import Apply, Batch, Pictures, Totals, ratios

NOTHING_YET = -1  # stands before the first value; its one-hot code is zero


@dataclasses.dataclass(frozen=True)
class Autoregression:
    """Cross-entropy of the next of `levels` values, in bits per dimension; reads `tokens`, or an `image` row by row.

    The model is causal: its output t may depend on inputs up to t, and is given the sequence shifted by one. Its method
    `decode` takes one value [N] and keeps what it needs of the past in the collection `cache`; so it generates.
    """

    levels: int = 256  # pixels of 0..1 are rounded to this many
    num_samples: int = 16  # sequences that `predict` generates for each batch; 0 for none

    directions: ClassVar[Mapping[str, str]] = {'bits_per_dim': 'min', 'accuracy': 'max'}

    def fields(self, spec: Spec) -> tuple[str, ...]:
        return ('tokens',) if 'tokens' in spec.shapes else ('image',)

    def inputs(self, spec: Spec) -> tuple[jax.ShapeDtypeStruct]:
        if 'tokens' not in spec.shapes and 'image' not in spec.shapes:
            raise InputError(
                f'task autoregression needs tokens or image; the data has {", ".join(sorted(spec.shapes))}'
            )
        if spec.normalized:
            raise InputError('task autoregression counts levels of pixels: leave config.data.mean and std empty')
        length = math.prod(spec.shapes[self.fields(spec)[0]])
        return (jax.ShapeDtypeStruct((1, length), jnp.int32),)

    def num_outputs(self, spec: Spec) -> int:
        return self.levels

    def loss(self, apply: Apply, variables: Any, batch: Batch, key: jax.Array) -> Any:
        tokens = self.tokens(batch)
        logits, model_state = apply(variables, shifted(tokens), train=True, key=key)  # [N, T, levels]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens) * batch['valid'][:, None]
        count = batch['valid'].sum() * tokens.shape[1]
        return (losses.sum(), count), (model_state, {'bits_per_dim': (losses.sum() / math.log(2), count)})

    def predict(self, apply: Apply, variables: Any, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        tokens = self.tokens(batch)
        logits, _ = apply(variables, shifted(tokens), train=False)
        predictions = {'logits': logits}
        if self.num_samples:
            samples = self.generate(apply, variables, key, self.num_samples, tokens.shape[1])
            predictions['samples'] = samples.reshape(self.num_samples, *batch[self._field(batch)].shape[1:])
        return predictions

    def generate(self, apply: Apply, variables: Any, key: jax.Array, num: int, length: int) -> jax.Array:
        """`num` sequences [num, length] drawn from the model, in time linear in `length`."""

        def step(carry: Any, position: jax.Array) -> tuple[Any, jax.Array]:
            previous, cache = carry
            logits, state = apply(
                {**variables, 'cache': cache}, previous, train=False, method='decode', mutable=('cache',)
            )
            token = jax.random.categorical(jax.random.fold_in(key, position), logits).astype(jnp.int32)
            return (token, state['cache']), token

        first = jnp.full((num,), NOTHING_YET, jnp.int32)
        _, state = jax.eval_shape(lambda: apply(variables, first, train=False, method='decode', mutable=('cache',)))
        cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state['cache'])
        _, tokens = jax.lax.scan(step, (first, cache), jnp.arange(length))
        return tokens.T

    def metrics(self, predictions: dict[str, jax.Array], batch: Batch) -> Totals:
        tokens, logits, valid = self.tokens(batch), predictions['logits'], batch['valid'][:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        count = valid.sum() * tokens.shape[1]
        return {
            'bits_per_dim': ((losses * valid).sum() / math.log(2), count),
            'accuracy': (((logits.argmax(-1) == tokens) & valid).sum(), count),
        }

    def collect(self, predictions: dict[str, jax.Array], batch: Batch) -> tuple[jax.Array, ...] | None:
        """The samples, as many true examples and which of those are no padding, where they are pictures."""
        if not self.num_samples or 'image' not in batch:
            return None
        return predictions['samples'], batch['image'][: self.num_samples], batch['valid'][: self.num_samples]

    def summarize(self, totals: Totals, collected: Sequence[Any], spec: Spec) -> tuple[dict[str, float], Pictures]:
        if not collected:
            return ratios(totals), {}
        samples, examples, valid = collected[0]
        examples = examples[valid]
        rows = np.concatenate([samples / (self.levels - 1), examples])
        captions = ['generated'] * len(samples) + ['true'] * len(examples)
        return ratios(totals), {'samples': lambda: pictures.grid(rows, captions)}

    def tokens(self, batch: Batch) -> jax.Array:
        """The sequence as int32 [N, T]."""
        values = batch[self._field(batch)]
        if 'tokens' not in batch:
            values = jnp.round(values * (self.levels - 1))
        return values.reshape(len(values), -1).astype(jnp.int32)

    def _field(self, batch: Batch) -> str:
        return 'tokens' if 'tokens' in batch else 'image'


def shifted(tokens: jax.Array) -> jax.Array:
    """What is known before each value: the sequence one later."""
    return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=NOTHING_YET)


TASK = Autoregression
