// Shim: CUDA streams of the real SDK. The only file that needs headers beyond the executor's.
#include "stream.h"

#include "tensorrt_llm/runtime/cudaStream.h"

namespace cuelight::trtllm
{
void waitFor(tensorrt_llm::executor::StreamPtr const& stream)
{
    if (stream)
    {
        stream->synchronize();
    }
}

bool isStandin()
{
    return false;
}
} // namespace cuelight::trtllm
