"""ECAPA-TDNN: convolutions with channel gates, attentive statistics over time, an embedding, a linear layer.

Source: Desplanques, Thienpondt and Demuynck 2020, "ECAPA-TDNN: Emphasized Channel Attention, Propagation and
Aggregation in TDNN Based Speaker Verification" (https://arxiv.org/abs/2005.07143); as the aggregator of Morais et al.
2022. Defaults are the paper's smaller network: 512 channels, three blocks of dilation 2, 3 and 4, an embedding of 192.
On 80 mels the embedding has 6.2 million parameters, and 14.7 million with 1024 channels, as the paper says.

Departures: three are SpeechBrain's. A block reads the output of the one before it, and not the sum of all before it,
unless `summed` is set; batch norm stands behind the convolution that aggregates the blocks; none stands behind the
embedding. The classifier is a linear layer with cross-entropy, as in Morais et al., and not AAM-softmax. Padding
changes no score, and in training no statistic of batch normalisation; published code convolves and normalises it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from featcache.errors import ConfigError
from heads.models._ecapa import EcapaTdnn, Sizes
from heads.pooling import PoolingHead


@dataclass(frozen=True)
class Ecapa(PoolingHead):
    """ECAPA-TDNN over the frames of one or several streams.

    Attributes:
        dropout: share of the embedding set to 0 in training; the paper has none.
        channels: of the convolutions; 1024 in the paper's larger network.
        mfa_channels: of the aggregation of all blocks, which is pooled.
        dilations: of the blocks' convolutions, one block each.
        kernel: frames that each of these spans; odd.
        first_kernel: frames that the first convolution spans; odd.
        scale: groups of channels in a block (Res2Net).
        se_channels: of the squeeze of the gates.
        attention_channels: of the attention.
        global_context: whether the attention sees the whole utterance's mean and standard deviation.
        embedding_dim: size of the embedding.
        padding: what convolutions see around an utterance: ``"zeros"``, or its own frames mirrored (``"reflect"``, as
            SpeechBrain's, at about the cost of another convolution).
        summed: whether a block reads the sum of what all before it gave, as in section 3.3 of the paper; SpeechBrain's
            reads what the one before it gave.
    """

    title: ClassVar[str] = "ECAPA-TDNN: Res2Net blocks with gates, attentive statistics, embedding, linear"

    dropout: float = 0.0
    channels: int = 512
    mfa_channels: int = 1536
    dilations: tuple[int, ...] = (2, 3, 4)
    kernel: int = 3
    first_kernel: int = 5
    scale: int = 8
    se_channels: int = 128
    attention_channels: int = 128
    global_context: bool = True
    embedding_dim: int = 192
    padding: Literal["zeros", "reflect"] = "zeros"
    summed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = {
            "channels": self.channels, "mfa_channels": self.mfa_channels, "scale": self.scale,
            "se_channels": self.se_channels, "attention_channels": self.attention_channels,
            "embedding_dim": self.embedding_dim, "dilations": min(self.dilations, default=0),
        }  # fmt: skip
        for name, count in counts.items():
            if count < 1:
                raise ConfigError(f"{name} of ecapa must be 1 or more, got {getattr(self, name)}.")
        for name in ("kernel", "first_kernel"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ConfigError(f"{name} of ecapa must be an odd number of frames, got {getattr(self, name)}.")
        if self.channels % self.scale:
            raise ConfigError(
                f"ecapa divides its channels into scale groups: {self.channels} is not a multiple of {self.scale}. "
                "Set channels to one, such as 512, or scale to a divisor."
            )

    @property
    def width(self) -> int:
        """Size of the embedding."""
        return self.embedding_dim

    def held(self) -> int:
        """Return the numbers held for a frame: outputs of all blocks, and the pooling's copies of the aggregation."""
        return 2 * self.channels * len(self.dilations) + 5 * self.mfa_channels

    def pooling(self, dim: int) -> EcapaTdnn:
        """Return a fresh network."""
        return EcapaTdnn(
            dim,
            Sizes(
                channels=self.channels,
                aggregated=self.mfa_channels,
                squeezed=self.se_channels,
                attention=self.attention_channels,
                embedding=self.embedding_dim,
                scale=self.scale,
                kernel=self.kernel,
                first_kernel=self.first_kernel,
                dilations=self.dilations,
                global_context=self.global_context,
                edges=self.padding,
                summed=self.summed,
            ),
        )
