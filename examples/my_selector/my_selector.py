import ostlight


class Steps(ostlight.Selector):
    """Prefers answers that show their steps: the most sentences."""

    def score(self, batch):
        steps = [sample.answer.count(".") for sample in batch.samples]
        return {"score": steps, "characters": [len(sample.answer) for sample in batch.samples]}
