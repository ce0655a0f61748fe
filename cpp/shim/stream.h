// Shim: the one thing it needs of a CUDA stream. stream_cuda.cc is for the real SDK, stream_host.cc for the stand-in.
#pragma once

#include "tensorrt_llm/executor/executor.h"

namespace cuelight::trtllm
{
// Returns when everything on the stream has been done.
void waitFor(tensorrt_llm::executor::StreamPtr const& stream);

// Whether this build is against the stand-in.
bool isStandin();
} // namespace cuelight::trtllm
