// Stand-in: the forward pass, logits post-processing and sampling.
#include "loop.h"

#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace cuelight::standin
{
void Loop::compute()
{
    auto const at = mSettings.forwardErrorAt;
    bool const once = at > 0 && mIteration >= at && !mForwardErrorDone;
    bool const every = mSettings.forwardErrorEvery > 0 && mIteration % mSettings.forwardErrorEvery == 0;
    bool const sticky = mSettings.forwardErrorFrom > 0 && mIteration >= mSettings.forwardErrorFrom;
    mForwardErrorDone = mForwardErrorDone || once;
    check(!once && !every && !sticky, "CUDA runtime error in forward: an illegal memory access was encountered");
    std::vector<Sequence*> ready;
    for (auto const& sequence : mActive)
    {
        if (!sequence->scheduledNow)
        {
            continue;
        }
        bool const decodes = sequence->chunk == 1 && sequence->computed >= sequence->promptLen;
        mGeneration += decodes ? 1 : 0;
        mContext += decodes ? 0 : 1;
        mContextTokens += decodes ? 0 : static_cast<std::int32_t>(sequence->chunk);
        sequence->computed += sequence->chunk;
        if (sequence->computed < sequence->tokens.size())
        {
            continue;
        }
        if (!decodes)
        {
            mPool.store(sequence->lease, sequence->tokens, sequence->computed);
        }
        sequence->iterations++;
        sequence->newLogits.clear();
        ready.push_back(sequence.get());
    }
    auto const all = ready;
    for (std::int64_t i = 0; i < mSettings.tokensPerStep && !ready.empty(); i++)
    {
        for (auto* sequence : ready)
        {
            sequence->computed = sequence->tokens.size();
        }
        produce(ready);
        auto const over = std::remove_if(ready.begin(), ready.end(),
            [](auto const* sequence)
            {
                auto const type = sequence->job->request.getRequestType();
                return sequence->finish != tle::FinishReason::kNOT_FINISHED
                    || type == tle::RequestType::REQUEST_TYPE_CONTEXT_ONLY;
            });
        ready.erase(over, ready.end());
    }
    for (auto* sequence : all)
    {
        answer(*sequence);
    }
}

void Loop::produce(std::vector<Sequence*> const& ready)
{
    std::vector<std::vector<float>> logits(ready.size());
    for (std::size_t i = 0; i < ready.size(); i++)
    {
        if (ready[i]->job->rules.needsLogits)
        {
            logits[i].resize(static_cast<std::size_t>(mSettings.vocab));
        }
    }
    std::vector<Chosen> chosen(ready.size(), Chosen{0, 0.f});
    if (mSource.forward != nullptr)
    {
        askSource(ready, logits);
    }
    for (std::size_t i = 0; i < ready.size(); i++)
    {
        auto& sequence = *ready[i];
        if (mSource.forward != nullptr)
        {
            continue;
        }
        for (; sequence.hashed < sequence.tokens.size(); sequence.hashed++)
        {
            sequence.hash = extendHash(sequence.hash, sequence.tokens[sequence.hashed]);
        }
        if (!logits[i].empty())
        {
            builtInLogits(sequence.hash, logits[i].data(), logits[i].size());
            continue;
        }
        auto const next = builtIn(sequence.hash, static_cast<std::size_t>(mSettings.vocab));
        append(sequence, next, logits[i]);
    }
    postProcess(ready, logits);
    for (std::size_t i = 0; i < ready.size(); i++)
    {
        if (logits[i].empty())
        {
            continue;
        }
        auto& sequence = *ready[i];
        auto const seen = logits[i];
        auto const next = choose(sequence.job->rules, logits[i], sequence.tokens, sequence.promptLen,
            static_cast<std::uint64_t>(sequence.index));
        append(sequence, next, seen);
    }
}

void Loop::askSource(std::vector<Sequence*> const& ready, std::vector<std::vector<float>>& logits)
{
    std::vector<cuelight_standin_row> rows;
    for (std::size_t i = 0; i < ready.size(); i++)
    {
        auto& sequence = *ready[i];
        rows.push_back({sourceId(sequence), sequence.tokens.data(), sequence.tokens.size(), sequence.promptLen,
            sequence.told, logits[i].empty() ? nullptr : logits[i].data(), static_cast<std::size_t>(mSettings.vocab),
            -1, 0.f});
        sequence.told = sequence.tokens.size();
    }
    check(mSource.forward(mSource.user, mModel.c_str(), rows.data(), rows.size()) == 0, "the token source failed");
    for (std::size_t i = 0; i < ready.size(); i++)
    {
        if (logits[i].empty())
        {
            check(rows[i].token >= 0 && rows[i].token < mSettings.vocab, "the token source gave no token");
            append(*ready[i], {rows[i].token, rows[i].logprob}, logits[i]);
        }
    }
}

// Runs in the executor's thread. What a processor throws fails the whole batch.
void Loop::postProcess(std::vector<Sequence*> const& ready, std::vector<std::vector<float>>& logits)
{
    auto const config = mConfig.getLogitsPostProcessorConfig();
    auto const map = config ? config->getProcessorMap() : std::nullopt;
    std::vector<tle::IdType> ids;
    std::vector<tle::Tensor> tensors;
    std::vector<tle::BeamTokens> tokens;
    std::vector<std::optional<tle::IdType>> clients;
    tokens.reserve(ready.size());
    for (std::size_t i = 0; i < ready.size(); i++)
    {
        auto const& request = ready[i]->job->request;
        auto const name = request.getLogitsPostProcessorName();
        auto const& own = request.getLogitsPostProcessor();
        if (logits[i].empty() || (!name && !own))
        {
            continue;
        }
        std::int64_t const shape[] = {1, 1, static_cast<std::int64_t>(logits[i].size())};
        auto tensor = tle::Tensor::of(logits[i].data(), tle::Shape(shape, 3));
        if (mSettings.gpuLogits != 0)
        {
            tensor = tle::Tensor::gpu(tle::DataType::kFP32, nullptr, tle::Shape(shape, 3));
            tensor.setFrom(tle::Tensor::of(logits[i].data(), tle::Shape(shape, 3)));
        }
        tokens.push_back({ready[i]->tokens});
        if (name && *name == tle::Request::kBatchedPostProcessorName)
        {
            ids.push_back(ready[i]->id);
            tensors.push_back(tensor);
            clients.push_back(request.getClientId());
            continue;
        }
        auto const& processor = own ? *own : map->at(*name);
        processor(ready[i]->id, tensor, tokens.back(), nullptr, request.getClientId());
        std::memcpy(logits[i].data(), tensor.getData(), logits[i].size() * sizeof(float));
        tokens.pop_back();
    }
    if (ids.empty())
    {
        return;
    }
    std::vector<std::reference_wrapper<tle::BeamTokens const>> const views(tokens.begin(), tokens.end());
    (*config->getProcessorBatched())(ids, tensors, views, nullptr, clients);
    for (std::size_t i = 0, at = 0; i < ready.size() && at < ids.size(); i++)
    {
        if (ready[i]->id == ids[at])
        {
            std::memcpy(logits[i].data(), tensors[at].getData(), logits[i].size() * sizeof(float));
            at++;
        }
    }
}

void Loop::append(Sequence& sequence, Chosen chosen, std::vector<float> const& logits)
{
    auto const& rules = sequence.job->rules;
    auto& timing = sequence.metrics.timingMetrics;
    timing.lastTokenTime = Clock::now();
    if (sequence.outputLen() == 0)
    {
        timing.firstTokenTime = timing.lastTokenTime;
    }
    sequence.metrics.lastIter = static_cast<std::uint64_t>(mIteration);
    bool const ends = rules.endId && chosen.token == *rules.endId;
    if (ends)
    {
        sequence.finish = tle::FinishReason::kEND_ID;
    }
    if (ends && mSettings.endInOutput == 0)
    {
        return; // the end is no token of the output
    }
    mProduced++;
    sequence.tokens.push_back(chosen.token);
    sequence.logProbs.push_back(chosen.logProb);
    sequence.cumLogProb += chosen.logProb;
    if (sequence.job->request.getOutputConfig().returnGenerationLogits)
    {
        sequence.newLogits.insert(sequence.newLogits.end(), logits.begin(), logits.end());
    }
    if (!ends && endsWithStop(rules, sequence.tokens, sequence.promptLen))
    {
        sequence.finish = tle::FinishReason::kSTOP_WORDS;
    }
    else if (!ends && sequence.tokens.size() >= sequence.maxLen)
    {
        sequence.finish = tle::FinishReason::kLENGTH;
    }
}
} // namespace cuelight::standin
