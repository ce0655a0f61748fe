// Stand-in: how large the engine is, how fast, and how it misbehaves.
#pragma once

#include "standin.h"

#include <cstdint>
#include <filesystem>
#include <string>

namespace cuelight::standin
{
// `…At`: from the step of that number on (the first is 1), once; 0 for never. `…Every`: each so many; 0 for never.
struct Settings
{
    // The model and its machine.
    int64_t tokensPerBlock = 16;
    int64_t vocab = 512;
    int64_t maxSeqLen = 2048;
    int64_t maxInputLen = 0; // 0: one less than maxSeqLen
    int64_t blocks = 1024;   // if KvCacheConfig does not say
    int64_t blockBytes = 65536;
    int64_t maxBatchSize = 8;
    int64_t maxNumTokens = 8192;
    int64_t lora = 1;
    int64_t tokensPerStep = 1;
    int64_t openMs = 0;
    int64_t stepUs = 0;
    int64_t stepUsPerToken = 0;
    int64_t enqueueUs = 0; // after the request was handed over
    int64_t transferMs = 1;
    int64_t endInOutput = 0;
    int64_t gpuLogits = 0; // logits of processors claim to be on a device
    // Misbehaviour of single requests.
    int64_t requestErrorEvery = 0;
    int64_t zeroFinal = 0;
    int64_t strayEvery = 0;
    int64_t lateCancelSteps = 0;
    int64_t queueFull = 0;
    // Misbehaviour of the whole.
    int64_t forwardErrorAt = 0;
    int64_t forwardErrorEvery = 0;
    int64_t forwardErrorFrom = 0;
    int64_t wedgeAt = 0;
    int64_t abortAt = 0;
    int64_t exitAt = 0;
    // KV events.
    int64_t kvGapEvery = 0;
    int64_t kvPartial = 1;
    int64_t kvWindows = 1; // more than one: the smaller ones of a sliding-window model
    // Transfers.
    int64_t transferStall = 0;
    int64_t transferError = 0;
    int64_t smallBufferStalls = 1;
    int64_t reapIdle = 0;
    // Texts.
    std::string version;
    std::string openError;
    std::string throwIn;   // a method of Executor, "open" or "events"
    std::string throwKind; // "runtime" (default), "int", "string", "bad_alloc", "out_of_range"
};

// What holds for this model now: standin.conf, then the environment, then what was set.
Settings settingsFor(std::filesystem::path const& model);

// Changes whenever something is set.
uint64_t settingsAge();

// Blocks until cuelight_standin_reset is called.
void wedge();

// Throws what `throwIn` and `throwKind` ask for, if it is this call.
void maybeThrow(Settings const& settings, char const* call);

struct Source
{
    cuelight_standin_forward forward = nullptr;
    cuelight_standin_forget forget = nullptr;
    void* user = nullptr;
};

Source currentSource();
} // namespace cuelight::standin
