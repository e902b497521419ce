"""What the PyTorch contestants share: training, eager as these libraries have it, and networks."""

from sizes import FEATURES, LEARNING_RATE, WIDTH, number_of_cores


class TorchPeer:
    """A module and its training, on a GPU if there is one.

    A subclass has `build`, which makes the module, and `log_likelihoods` and `draw` if need be.
    In bfloat16 both are autocast, which leaves the weights in float32 as Keras' policy does.
    """

    shape = (FEATURES,)

    def __init__(self, depth, batch_size, dtype="float32"):
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(number_of_cores())
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, TensorFlow's default
        self.batch = torch.rand(batch_size, *self.shape, device=self.device) - 0.5
        self.model = self.build(depth).to(self.device)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in parameters)
        self.optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
        if dtype == "bfloat16":
            autocast = torch.autocast(self.device, torch.bfloat16)
            self.log_likelihoods = autocast(self.log_likelihoods)
            self.draw = autocast(self.draw)
        with torch.no_grad():
            self.log_likelihoods()  # the ActNorms take their initial values from the first batch

    def log_likelihoods(self):
        return self.model.log_prob(self.batch)

    def draw(self, number):
        return self.model.sample(number)

    def train_step(self):
        self._set_training(True)
        self.optimizer.zero_grad()
        loss = -self.log_likelihoods().mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def log_prob(self):
        self._set_training(False)
        with self.torch.no_grad():
            return self.log_likelihoods().float().cpu().numpy()

    def sample(self):
        self._set_training(False)
        with self.torch.no_grad():
            return self.draw(len(self.batch)).float().cpu().numpy()

    def graph(self):
        return None

    def _set_training(self, mode):
        if self.model.training != mode:  # entering training mode empties nflows' caches
            self.model.train(mode)


def eager_and_compiled(peers):
    """Each of `peers` by name, and as users of PyTorch would speed it up."""
    every = {}
    for name, peer in peers.items():
        every |= {name: peer, f"{name} compiled": compiled(peer)}
        every[f"{name} graphs"] = compiled(peer, "reduce-overhead")
    return every


def compiled(peer, mode="default"):
    """The contestant with its log-likelihoods, so their gradients, and its samples compiled.

    In mode "reduce-overhead" as CUDA graphs, which start many kernels at once.
    """

    class Compiled(peer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            if mode == "reduce-overhead" and self.device == "cpu":
                raise NotImplementedError  # without a word: no row either
            self.log_likelihoods = self.torch.compile(self.log_likelihoods, mode=mode)
            self.draw = self.torch.compile(self.draw, mode=mode)

    return Compiled


def conv_net(channels_in, channels_out):
    """Glow's network, for the libraries that leave it to their users."""
    from torch import nn

    first, second = nn.Conv2d(channels_in, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1)
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(first, relu, second, relu, zero_conv(WIDTH, channels_out))


def zero_conv(channels_in, channels_out):
    """The end of Glow's network, and all of the network of a factored half's prior."""
    from torch import nn

    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def without_context(make_network):
    """What nflows calls to make a network, to which it passes a context besides the inputs."""
    from torch import nn

    class WithoutContext(nn.Sequential):
        def forward(self, inputs, context=None):
            return super().forward(inputs)

    return lambda *sizes: WithoutContext(make_network(*sizes))
